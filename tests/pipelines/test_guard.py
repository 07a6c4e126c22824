"""The guard as a part of a training, and as a command of its own."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import kikitori
from composing import composed

from kikitori.compare.leaderboard import leaderboards_of
from kikitori.compare.page import render
from kikitori.guard.figures import certainly_worse
from kikitori.guard.reader import Job, Reader
from kikitori.pipelines.guard import guard
from kikitori.pipelines.train import train
from kikitori.runs.reader import find_runs
from kikitori.runs.wandb_logger import summary
from kikitori.runtime.errors import ConfigError, DataError, GuardFailed, ModelError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SMALL = [
    *("experiment=demo", "logger=none", "model.d_model=32", "model.encoder_layers=1", "model.decoder_layers=1"),
    *("generation.max_new_tokens=6", "validation.every_steps=3", "trainer.max_steps=3"),
    *("data.limit={train: 12, validation: 4, test: 4}", "score.train_clips=3", "guard.clips=3"),
]
SETS = {
    *("silence", "white noise", "pink noise", "tone", "reversed speech"),
    *("clips", "8 kHz", "noise 10 dB", "joined 6 s", "joined 12 s"),
    *("joined", "no speech"),
}


def run(command: str, folder: Path, *words: str) -> dict[str, Any]:
    given = [*(SMALL if command == "train" else []), *words]
    return {"train": train, "guard": guard}[command](composed(command, given), folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guard") / "run"
    run("train", folder)
    return folder


def test_a_training_ends_with_its_guard(trained: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    figures = results["guard"]
    assert {row["set"] for row in figures} == SETS
    assert {row["reading"] for row in figures} == {"own windows", "full window"}
    # The same clips give the same rate as in the scores, since all are padded to the model's window.
    before = results["scores"]["before"]["test"]["cer"]
    (clips,) = (r for r in figures if (r["set"], r["reading"], r["measure"]) == ("clips", "own windows", "cer"))
    rows = (trained / "predictions" / "guard_base.jsonl").read_text().splitlines()
    assert clips["recordings"] == 3
    assert len(rows) == 2 * (4 * 4 + 3 * 4 + 6)
    assert clips["base"] == pytest.approx(100 * before, rel=0.5)
    assert "**Guard.**" in (trained / "model" / "README.md").read_text()
    assert "## Guard\n\n| set | reading |" in (trained / "results.md").read_text()
    # A reader without the documents learns what an empty last column means.
    assert all("takes six recordings" in (trained / name).read_text() for name in ("model/README.md", "results.md"))
    logged = summary(results)
    assert logged["guard/clips/own windows/cer/base"] == clips["base"]
    assert sum(key.startswith("guard/") for key in logged) == 2 * len(figures)


def test_the_page_has_the_guard(trained: Path) -> None:
    page = render(leaderboards_of(find_runs(trained)), [], "kikitori compare")
    assert "Guard of" in page
    assert "joined 12 s" in page


def test_a_resumed_training_reads_with_the_base_only_once(tmp_path: Path) -> None:
    run("train", tmp_path, "optim.schedule=constant")
    file = tmp_path / "predictions" / "guard_base.jsonl"
    before = file.stat().st_mtime_ns
    words = ["trainer.max_steps=6", "resume_accept=[trainer.max_steps]", "optim.schedule=constant", "resume=auto"]
    assert {row["set"] for row in run("train", tmp_path, *words)["guard"]} == SETS
    assert file.stat().st_mtime_ns == before
    # Other clips are read again.
    run("train", tmp_path, *words, "guard.clips=2", "resume_accept=[guard,trainer.max_steps]", "trainer.max_steps=9")
    assert file.stat().st_mtime_ns > before


def test_a_run_that_is_interrupted_while_it_is_guarded_reads_nothing_twice(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, ...]] = []
    of_one_model, predict = 2 * (4 * 4 + 3 * 4 + 6), Reader.predict_step

    def predict_step(self: Reader, job: Job, batch_idx: int) -> list[dict[str, Any]]:
        if len(read) > of_one_model + 9:
            raise KeyboardInterrupt
        rows = predict(self, job, batch_idx)
        read.extend((row["set"], row["recording"], row["reading"]) for row in rows)
        return rows

    monkeypatch.setattr(Reader, "predict_step", predict_step)
    with pytest.raises(SystemExit):  # of Lightning
        run("train", tmp_path)
    of_base, of_tuned = len(read[:of_one_model]), len(read[of_one_model:])
    assert (of_base, json.loads((tmp_path / "results.json").read_text())["status"]) == (of_one_model, "failed")
    assert 0 < of_tuned < of_one_model
    read.clear()
    of_one_model = 10**6
    resumed = run("train", tmp_path, "resume=auto")
    # Of the base nothing; of the tuned model all.
    assert len(read) == len(set(read)) == 2 * (4 * 4 + 3 * 4 + 6)
    assert resumed["guard"] == json.loads((trained / "results.json").read_text())["guard"]


def test_the_command_gives_the_figures_of_the_training(trained: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    run("train", base, "trainer.max_steps=1", "validation.every_steps=1", "optim.lr=1e-12")
    found = run("guard", tmp_path / "out", f"checkpoint={trained}", f"against={base}", "guard.clips=3")
    recorded = json.loads((trained / "results.json").read_text())["guard"]
    for row, other in zip(found["guard"], recorded, strict=True):
        assert row["tuned"] == pytest.approx(other["tuned"]), row
        assert row["base"] == pytest.approx(other["base"], abs=1e-3), row
    assert "## Guard" in (tmp_path / "out" / "results.md").read_text()


def test_a_worse_figure_is_an_error_if_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kikitori.steps import guarding as module

    monkeypatch.setattr(module, "compare", lambda base, tuned: [WORSE])
    with pytest.raises(GuardFailed, match=r"1 figures? (are|is) worse than the base's: silence, own windows"):
        run("train", tmp_path / "run", "guard.fail_if_worse=true")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["status"] == "completed"
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


WORSE = {"set": "silence", "reading": "own windows", "measure": "invented", "recordings": 16, "base": 0.0, "tuned": 6.0}
WORSE |= {"change": 6.0, "change_ci95": [2.0, 8.0], "p": 0.001, "verdict": "worse"}


def test_what_is_missing_is_named_with_its_remedy(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="checkpoint: not set; pass the tuned model: kikitori guard"):
        run("guard", tmp_path / "a")
    with pytest.raises(ConfigError, match="random weights, so it has no base; pass --against with a model"):
        run("guard", tmp_path / "a", f"checkpoint={trained}")
    shutil.copytree(trained / "model", tmp_path / "model")
    with pytest.raises(ConfigError, match="is no run that would name its corpus; pass data="):
        run("guard", tmp_path / "a", f"checkpoint={tmp_path / 'model'}", f"against={trained}")
    with pytest.raises(ConfigError, match=r"guard\.clips: must not be below 0"):
        run("guard", tmp_path / "a", f"checkpoint={trained}", f"against={trained}", "guard.clips=-1")
    words = [f"checkpoint={trained}", f"against={trained}", "+data@guard.sets.clips=demo"]
    with pytest.raises(ConfigError, match=r"guard\.sets\.clips: the guard has a set of this name; choose another"):
        run("guard", tmp_path / "a", *words)
    with pytest.raises(ConfigError, match=r"guard\.sets\.german: must be a mapping with a _target_"):
        run("guard", tmp_path / "a", f"checkpoint={trained}", f"against={trained}", "+guard.sets.german.name=x")


def test_models_that_do_not_read_the_same_are_refused(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    run("train", other, "model.window_s=4", "guard.clips=0")
    with pytest.raises(ModelError, match=r"checkpoint has a window of 3 s .* against a window of 4 s"):
        run("guard", tmp_path / "out", f"checkpoint={trained}", f"against={other}", "guard.clips=1")


def test_what_is_wrong_with_a_set_names_it(trained: Path, tmp_path: Path) -> None:
    words = ["+data@guard.sets.german=demo", "+guard.sets.german.language=de", "guard.clips=1"]
    with pytest.raises(DataError, match=r"^guard\.sets\.german\.language=de, but .* Set guard\.sets\.german\.language"):
        run("guard", tmp_path / "out", f"checkpoint={trained}", f"against={trained}", *words)


def test_a_set_of_the_users_is_read_in_its_language(trained: Path, tmp_path: Path) -> None:
    words = ["+data@guard.sets.demo=demo", "+guard.sets.demo.language=ja", "guard.clips=2"]
    found = run("guard", tmp_path / "out", f"checkpoint={trained}", f"against={trained}", *words)
    sets = {row["set"]: row for row in found["guard"] if row["measure"] == "cer"}
    assert sets["demo"]["recordings"] == 2
    assert all(row["change"] == 0 and row["verdict"] == "" for row in found["guard"])


@pytest.mark.long
def test_the_exit_code_of_the_command_says_whether_a_figure_is_worse(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    run("train", other, "optim.lr=1e-1", "optim.warmup_steps=0", "guard.clips=0")
    codes = []
    for number, (one, two) in enumerate(((trained, other), (other, trained))):
        words = ["guard", str(one), "--against", str(two), "guard.clips=12", "data=demo", f"hydra.run.dir={number}"]
        done = kikitori(*words, "guard.fail_if_worse=true", cache=tmp_path)
        figures = json.loads((tmp_path / str(number) / "results.json").read_text())["guard"]
        assert done.returncode == int(bool(certainly_worse(figures))), done.stderr
        assert ("GuardFailed: " in done.stderr) == bool(done.returncode)
        codes.append(done.returncode)
    assert 1 in codes


@pytest.mark.long
def test_two_processes_read_what_one_reads(trained: Path, tmp_path: Path) -> None:
    words = ["guard", str(trained), "--against", str(trained), "guard.clips=3", "trainer=ddp"]
    for devices in (1, 2):
        done = kikitori(*words, f"trainer.devices={devices}", f"hydra.run.dir={devices}", cache=tmp_path)
        assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / folder / "results.json").read_text()) for folder in "12")
    assert two["cost"]["devices"] == 2
    assert one["guard"] == two["guard"]
    for model in ("base", "tuned"):
        files = [tmp_path / folder / "predictions" / f"guard_{model}.jsonl" for folder in "12"]
        one_rows, two_rows = (sorted(file.read_text().splitlines()) for file in files)
        assert one_rows == two_rows
