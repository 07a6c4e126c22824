"""Folders that kikitori wrote before configuration keys and targets were renamed still work."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import kikitori

pytestmark = pytest.mark.slow

OLD_RUNS = Path(__file__).with_name("old_runs")
# The configuration of the old runs, with the new names.
SAME = [
    *("data=demo", "model=micro", "model.d_model=8", "model.attention_heads=1", "model.encoder_layers=1"),
    *("model.decoder_layers=1", "model.init_std=1.0", "data.limit={train:8,validation:4,test:4}"),
    *("data.global_batch_size=4", "data.micro_batch_size=2", "data.eval_batch_size=4", "data.num_workers=0"),
    *("data.cache_encoder_outputs=false", "data.window=full", "callbacks=best_checkpoint"),
    *("callbacks.checkpoint.monitor=val/loss", "generation.max_new_tokens=16", "trainer.max_steps=8"),
    *("trainer.log_every_n_steps=2", "validation.every_steps=2", "optim.lr=1e-3", "optim.warmup_steps=2"),
    *("trainer.accelerator=cpu", "logger=none"),
]
# The validation losses of the interrupted run, had it not been interrupted, as the old code computes them.
LOSSES = [9.348014831542969, 9.174773216247559, 9.063288688659668, 9.016822814941406]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the old folders, which is also the working folder and holds the cache."""
    for name in ("interrupted", "sweep"):
        shutil.copytree(OLD_RUNS / name, tmp_path / name)
    return tmp_path


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def hypotheses(folder: Path, split: str, stage: str) -> dict[str, str]:
    lines = (folder / "predictions" / f"{split}_{stage}.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["clip"]: row["hypothesis"] for row in map(json.loads, lines)}


def test_an_old_run_resumes_from_its_last_step(old: Path) -> None:
    done = kikitori("train", "resume=interrupted", cache=old)
    assert done.returncode == 0, done.stderr
    assert "resuming from last.ckpt" in done.stdout + done.stderr
    resumed = results(old / "interrupted")
    assert resumed["status"] == "completed"
    assert [row["step"] for row in resumed["history"]] == [2, 4, 6, 8]
    assert [row["val/loss"] for row in resumed["history"]] == pytest.approx(LOSSES, rel=1e-4)


@pytest.mark.parametrize("checkpoint", ["sweep/1-seed-1", "sweep/0-seed-0/checkpoints/step-8.ckpt"])
def test_an_old_model_gives_its_old_transcripts(old: Path, checkpoint: str) -> None:
    limits = ["data=demo", "data.limit={validation:4,test:4}", "splits=[test]", "generation.max_new_tokens=16"]
    done = kikitori(
        "evaluate", *limits, "trainer.accelerator=cpu", f"checkpoint={checkpoint}", "hydra.run.dir=new", cache=old
    )
    assert done.returncode == 0, done.stderr
    run = old.joinpath(*Path(checkpoint).parts[:2])
    assert hypotheses(old / "new", "test", "evaluated") == hypotheses(run, "test", "after")
    rates, before = results(old / "new")["scores"]["evaluated"]["test"], results(run)["scores"]["after"]["test"]
    # Others were added later.
    assert before.items() <= rates.items()


@pytest.mark.long
def test_an_old_sweep_resumes_with_its_missing_trial(old: Path) -> None:
    expected = results(old / "sweep/1-seed-1")
    kept = (old / "sweep/0-seed-0/results.json").read_bytes()
    shutil.rmtree(old / "sweep/1-seed-1")
    done = kikitori("train", "-m", "resume_sweep=sweep", cache=old)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (old / "sweep/0-seed-0/results.json").read_bytes() == kept
    repeated = results(old / "sweep/1-seed-1")
    assert repeated["status"] == "completed"
    assert repeated["config"]["data"]["global_batch_size"] == 4
    losses = [row["val/loss"] for row in expected["history"]]
    assert [row["val/loss"] for row in repeated["history"]] == pytest.approx(losses, rel=1e-4)


def test_compare_puts_old_and_new_seeds_of_one_configuration_into_one_row(old: Path) -> None:
    done = kikitori("train", *SAME, "seed=3", "hydra.run.dir=new", cache=old)
    assert done.returncode == 0, done.stderr
    done = kikitori("compare", "sweep", "interrupted", "new", "--format", "json", cache=old)
    assert done.returncode == 0, done.stderr
    compared = json.loads(done.stdout)
    ((row,),) = [data_set["rows"] for data_set in compared["data_sets"]]
    assert row["runs"] == ["sweep/0-seed-0", "sweep/1-seed-1", "new"]
    assert row["seeds"] == [0, 1, 3]
    # The old transcripts are scored by today's rules.
    assert "nfkc-casefold-nopunct-2" in compared["data_sets"][0]["scoring"]
    assert [run["reason"] for run in compared["not_completed"]] == ["stopped by SIGINT"]
