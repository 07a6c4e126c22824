"""The commands as users run them: real processes, the demo corpus, a model of a few thousand parameters."""

import json
import os
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from commands import SMALL, kikitori
from fragile_decoders import fragile_decoders
from transformers import pipeline
from wandb_offline import OfflineRun

from kikitori.cli.main import COMMANDS
from kikitori.data.datamodule import Demo
from kikitori.runtime.paths import DEMO

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def run(cache: Path) -> tuple[Path, str, str]:
    """The folder of a completed run, its stdout and its stderr."""
    done = kikitori("train", *SMALL, "logger=both", "hydra.run.dir=run", cache=cache)
    assert done.returncode == 0, done.stderr
    return cache / "run", done.stdout, done.stderr


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def documented_files() -> list[str]:
    """The patterns of files in the first column of docs/run_folder.md, up to the table of sweeps."""
    page = (Path(__file__).parents[2] / "docs/run_folder.md").read_text(encoding="utf-8")
    table = page[: page.index("In a sweep")].splitlines()
    first = [line.split("|")[1] for line in table if line.startswith("| `")]
    return [pattern for cell in first for pattern in re.findall("`([^`]+)`", cell)]


def test_a_run_folder_holds_the_documented_files_and_nothing_else(run: tuple[Path, str, str]) -> None:
    names = [path.relative_to(run[0]).as_posix() for path in run[0].rglob("*") if path.is_file()]
    # A pattern of a folder stands for all that is in it.
    patterns = [f"{pattern}*" if pattern.endswith("/") else pattern for pattern in documented_files()]
    assert [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in names)] == []
    for split in ("train", "validation", "test"):
        assert {f"predictions/{split}_before.jsonl", f"predictions/{split}_after.jsonl"} <= set(names)
    assert not [name for name in names if name.endswith(".partial")]


def test_results_json_accounts_for_every_byte_of_the_folder(run: tuple[Path, str, str]) -> None:
    files = {path.stat().st_ino: path for path in run[0].rglob("*") if path.is_file() and not path.is_symlink()}
    sizes = dict.fromkeys(("checkpoints", "model", "tensorboard", "predictions", "wandb", "other"), 0)
    for path in files.values():
        folder = path.relative_to(run[0]).parts[0]
        sizes[folder if folder in sizes else "other"] += path.stat().st_size
    disk = results(run[0])["disk"]
    assert disk.keys() == sizes.keys()
    for name in ("wandb", "other"):  # W&B's own process ends, and results.json is written, after it was measured
        assert disk.pop(name) == pytest.approx(sizes.pop(name), abs=20_000)
    assert disk == sizes


def test_results_json_has_the_facts_that_other_commands_read(run: tuple[Path, str, str]) -> None:
    r = results(run[0])
    assert r["status"] == "completed"
    assert {"kikitori", "torch", "transformers"} <= r["versions"].keys()
    assert r["config"]["trainer"]["max_steps"] == 4
    assert {s: d["clips"] for s, d in r["data"]["splits"].items()} == {"train": 12, "validation": 4, "test": 5}
    assert r["data"]["splits"]["test"]["seconds"] > 5
    assert r["data"]["rejects"] == {}
    for stage in ("before", "after"):
        for split, clips in (("train", 3), ("validation", 4), ("test", 5)):
            scores = r["scores"][stage][split]
            assert scores.keys() >= {"cer", "wer", "cer_raw", "wer_raw", "cer_ci95", "clips"}
            assert scores["clips"] == clips
    assert [row["step"] for row in r["history"]] == [2, 4]
    assert all({"val/loss", "val/cer", "val/wer", "train/loss"} <= row.keys() for row in r["history"])
    expected_cost = {"prepare_s", "fit_s", "evaluate_s", "train_clips_per_s", "peak_memory_gb", "device"}
    assert expected_cost <= r["cost"].keys()
    assert "sudachidict-core" in r["scoring"]["segmenter"]


def test_predictions_add_up_to_the_scores(run: tuple[Path, str, str]) -> None:
    folder = run[0]
    rows = [json.loads(line) for line in (folder / "predictions/test_after.jsonl").read_text().splitlines()]
    cer = sum(row["cer_edits"] for row in rows) / sum(row["cer_length"] for row in rows)
    assert cer == pytest.approx(results(folder)["scores"]["after"]["test"]["cer"])
    assert {"clip", "reference", "hypothesis"} <= rows[0].keys()


def test_the_table_and_the_folder_are_printed_last_and_a_pipe_gets_no_progress_bars(run: tuple[Path, str, str]) -> None:
    folder, printed, errors = run
    lines = printed.rstrip().splitlines()
    assert lines[-1].startswith(f"Everything is in {folder.name} (")
    assert str(folder) not in printed
    assert any(line.startswith("CER of readings") for line in lines[-4:])
    assert any(line.startswith("└") for line in lines[-5:])
    assert "\r" not in printed + errors
    assert "it/s" not in printed + errors


def test_a_run_folder_contains_no_speaker_id(run: tuple[Path, str, str]) -> None:
    speakers = {line.split("\t")[0] for line in (DEMO / "train.tsv").read_text().splitlines()[1:]}
    assert len(speakers) == 5
    for path in run[0].rglob("*"):
        if path.is_file():
            assert not any(speaker.encode() in path.read_bytes() for speaker in speakers), path


@pytest.mark.parametrize("checkpoint", ["run", "run/model"])
def test_evaluate_reproduces_the_scores_of_a_run(run: tuple[Path, str, str], cache: Path, checkpoint: str) -> None:
    overrides = ["data=demo", "data.limit={validation: 4, test: 5}", "data.eval_batch_size=64"]
    overrides += ["trainer.accelerator=cpu", f"checkpoint={checkpoint}"]
    target = f"evaluated-{checkpoint.replace('/', '-')}"
    done = kikitori("evaluate", *overrides, f"hydra.run.dir={target}", cache=cache)
    assert done.returncode == 0, done.stderr
    after = results(run[0])["scores"]["after"]
    assert results(cache / target)["scores"]["evaluated"] == {s: after[s] for s in ("validation", "test")}


def test_evaluate_scores_a_lightning_checkpoint(run: tuple[Path, str, str], cache: Path) -> None:
    best = run[0] / results(run[0])["checkpoint"]["best"]
    overrides = ["data=demo", "data.limit={validation: 4, test: 5}", "data.eval_batch_size=64", "splits=[test]"]
    overrides += ["generation.max_new_tokens=12", "trainer.accelerator=cpu", f"checkpoint={best}"]
    done = kikitori("evaluate", *overrides, "hydra.run.dir=evaluated-ckpt", cache=cache)
    assert done.returncode == 0, done.stderr
    expected = results(run[0])["scores"]["after"]["test"]
    assert results(cache / "evaluated-ckpt")["scores"]["evaluated"]["test"] == expected


def test_transcribe_and_the_transformers_pipeline_give_the_hypotheses_of_the_run(
    run: tuple[Path, str, str], cache: Path
) -> None:
    folder = run[0]
    row = json.loads((folder / "predictions/test_after.jsonl").read_text().splitlines()[0])
    clip = DEMO / "clips" / row["clip"]
    done = kikitori("transcribe", str(clip), "--model", str(folder), "--format", "jsonl", cache=cache)
    assert json.loads(done.stdout)["text"] == row["hypothesis"], done.stderr
    reader = pipeline("automatic-speech-recognition", model=str(folder / "model"), device="cpu")
    samples, rate = soundfile.read(clip, dtype="float32")
    assert rate == 16_000
    assert reader({"raw": samples, "sampling_rate": rate})["text"].strip() == row["hypothesis"]


def test_transcribe_reads_folders_and_long_recordings_and_names_unreadable_files(
    run: tuple[Path, str, str], cache: Path
) -> None:
    folder = cache / "recordings"
    folder.mkdir()
    clips = [soundfile.read(path, dtype="float32")[0] for path in sorted((DEMO / "clips").glob("*.mp3"))[:5]]
    soundfile.write(folder / "long.wav", np.concatenate(clips), 16_000)
    (folder / "broken.mp3").write_text("not audio")
    (folder / "crash.mp3").write_bytes(b"SEGV")
    os.mkfifo(folder / "pipe.mp3")
    with fragile_decoders(cache / "python"):
        done = kikitori("transcribe", str(folder), "--model", str(run[0]), "--format", "jsonl", cache=cache)
    (row,) = map(json.loads, done.stdout.splitlines())
    assert row["file"].endswith("long.wav")
    assert row["seconds"] > 5
    assert done.returncode == 1
    assert "broken.mp3: is in no format that can be decoded" in done.stderr
    assert "crash.mp3: the decoder was killed by SIGSEGV" in done.stderr
    assert "pipe.mp3: missing" in done.stderr
    assert "3 of 4 files could not be read" in done.stderr


@pytest.fixture(scope="module")
def bucketed(cache: Path) -> Path:
    """A completed run with bucketed windows, and the full window in every other step."""
    window = ["data.window=bucketed", "data.window_edges_s=[1.5,2,2.5]", "data.window_margin_s=0.2"]
    window += ["data.full_window_share=0.5", "score.full_window_clips=3", "data.micro_batch_size=3"]
    done = kikitori("train", *SMALL, *window, "logger=none", "hydra.run.dir=bucketed", cache=cache)
    assert done.returncode == 0, done.stderr
    assert "In the full window, as stock tools read: validation CER" in done.stdout
    return cache / "bucketed"


def test_a_bucketed_run_reports_the_scores_in_the_full_window(bucketed: Path) -> None:
    scores = results(bucketed)["scores"]
    assert {s: v["clips"] for s, v in scores["after_in_full_window"].items()} == {"validation": 3, "test": 3}
    card = (bucketed / "model" / "README.md").read_text(encoding="utf-8")
    assert "the first of 1.5, 2, 2.5 s that holds the clip and 0.2 s of silence" in card
    cer = scores["after_in_full_window"]["test"]["cer"]
    assert (
        f"test CER {100 * cer:.1f} ["
        in card.split("pads every clip to the full window of 3 s; there this model scores")[1]
    )


@pytest.mark.parametrize("window", ["null", "full"])
def test_evaluate_uses_the_windows_of_the_model_or_those_of_the_configuration(
    bucketed: Path, cache: Path, window: str
) -> None:
    overrides = ["data=demo", "data.limit={validation: 4, test: 5}", "trainer.accelerator=cpu", f"data.window={window}"]
    done = kikitori("evaluate", *overrides, "checkpoint=bucketed", f"hydra.run.dir=window-{window}", cache=cache)
    assert done.returncode == 0, done.stderr
    found, run = results(cache / f"window-{window}"), results(bucketed)
    if window == "null":
        assert found["scores"]["evaluated"]["test"] == run["scores"]["after"]["test"]
    assert ("0.2 s of silence" in found["model"]["window"]) == (window == "null")
    pipeline_reads = pipeline("automatic-speech-recognition", model=str(bucketed / "model"), device="cpu")
    for row in map(json.loads, (cache / f"window-{window}/predictions/test_evaluated.jsonl").read_text().splitlines()):
        samples, _ = soundfile.read(DEMO / "clips" / row["clip"], dtype="float32")
        stock = pipeline_reads({"raw": samples, "sampling_rate": 16_000})["text"].strip()
        assert window == "null" or row["hypothesis"] == stock


def test_transcribe_uses_the_windows_of_the_model(bucketed: Path, cache: Path) -> None:
    rows = map(json.loads, (bucketed / "predictions/test_after.jsonl").read_text().splitlines())
    expected = {row["clip"]: row["hypothesis"] for row in rows}
    clips = [str(DEMO / "clips" / clip) for clip in expected]
    done = kikitori("transcribe", *clips, "--model", str(bucketed), "--format", "jsonl", cache=cache)
    texts = {Path(row["file"]).name: row["text"] for row in map(json.loads, done.stdout.splitlines())}
    assert texts == {Path(clip).name: text for clip, text in expected.items()}


@pytest.mark.long
def test_a_frozen_encoder_encodes_each_clip_once_and_the_scores_are_the_same(cache: Path) -> None:
    """Two processes write the cache together, and train as one process that encodes each clip in every step."""
    window = ["data.window=bucketed", "data.window_edges_s=[1.5,2,2.5]", "data.window_margin_s=0.2"]
    frozen = ["model.freeze=encoder", "data.full_window_share=0.5", "logger=none", "optim.lr=1e-3", *window]
    done = []
    for cached in (
        ["data.cache_encoder_outputs=false"],
        ["data.cache_encoder_outputs=true", "trainer=ddp", "trainer.devices=2"],
    ):
        folder = f"frozen-{len(done)}"
        run = kikitori("train", *SMALL, *frozen, *cached, f"hydra.run.dir={folder}", cache=cache, OMP_NUM_THREADS="1")
        assert run.returncode == 0, run.stderr
        done.append(results(cache / folder))
    uncached, once = done
    # Train in its own windows and in the full one, validation, and test.
    assert len(list((cache / "encoder").glob("*.states"))) == 4
    assert not list((cache / "encoder").glob("*.partial"))
    assert once["scores"] == uncached["scores"]
    for row, same in zip(once["history"], uncached["history"], strict=True):
        assert row == pytest.approx(same, rel=1e-4)


def test_a_run_is_never_overwritten(run: tuple[Path, str, str], cache: Path) -> None:
    before = {name: (run[0] / name).read_bytes() for name in ("results.json", ".hydra/overrides.yaml")}
    done = kikitori("train", *SMALL, "logger=none", "hydra.run.dir=run", cache=cache)
    assert done.returncode == 1
    assert "already holds a run; choose another folder" in done.stderr
    assert {name: (run[0] / name).read_bytes() for name in before} == before


def test_a_secret_on_the_command_line_is_written_nowhere(cache: Path) -> None:
    line = ["data=hub", "data.name=hf_abcdefgh", "hydra.run.dir=secret"]
    done = kikitori("train", *line, cache=cache, HF_TOKEN="hf_abcdefgh")
    assert done.returncode == 1
    assert "data.name holds the value of HF_TOKEN" in done.stderr
    assert "hf_abcdefgh" not in done.stderr
    assert not (cache / "secret").exists()


def test_a_bad_configuration_is_reported_without_a_traceback(cache: Path) -> None:
    done = kikitori("train", "data.global_batch_size=x", "optim.lr=-1", "hydra.run.dir=bad", cache=cache)
    assert done.returncode == 1
    assert "ConfigError: 3 problems in the configuration" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_failed_run_records_its_error_in_its_folder(cache: Path) -> None:
    done = kikitori(
        "train", *SMALL, "data.limit.test=null", "data.max_duration_s=0.5", "hydra.run.dir=fails", cache=cache
    )
    assert done.returncode == 1
    assert "12 too long, such as" in done.stderr
    assert "over data.max_duration_s=0.5): divide these recordings" in done.stderr
    assert f"{cache / 'fails/rejects.jsonl'} lists each clip that is left out" in done.stderr
    assert "Traceback" not in done.stderr
    assert results(cache / "fails")["status"] == "failed"
    assert "data.max_reject_rate=0.05 allows" in results(cache / "fails")["error"]
    rejects = [json.loads(line) for line in (cache / "fails/rejects.jsonl").read_text().splitlines()]
    assert [reject["reason"] for reject in rejects] == ["too long"] * 12


def test_prepare_builds_the_audio_cache_that_training_uses(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = kikitori("prepare", "data=demo", "hydra.run.dir=prepared", cache=cache)
    assert done.returncode == 0, done.stderr
    assert "480" in done.stdout
    assert "14 min" in done.stdout  # of 480 clips
    caches = {path.name: path.stat().st_mtime_ns for path in (cache / "store").glob("*.arrow")}
    data = Demo()
    monkeypatch.setenv("KIKITORI_CACHE", str(cache))
    data.setup()
    assert {path.name: path.stat().st_mtime_ns for path in (cache / "store").glob("*.arrow")} == caches
    assert {cached.path.name for cached in data.prepared.audio_caches.values()} <= caches.keys()


def test_prepare_says_why_a_split_is_absent(cache: Path) -> None:
    release = (f"data.release={DEMO}", "data.train_splits=[validatd]", "data.allow_shared_speakers=true")
    done = kikitori("prepare", *release, "hydra.run.dir=misspelt", cache=cache)
    assert done.returncode == 0, done.stderr
    absent = re.findall("no train split, which kikitori train needs: .*validatd.tsv does not exist; .*", done.stdout)
    assert len(absent) == 1
    assert "held_out" not in absent[0]


def test_compare_ranks_real_runs_and_writes_their_page(run: tuple[Path, str, str], cache: Path) -> None:
    done = kikitori("compare", "run", "--report", "report.html", cache=cache)
    assert done.returncode == 0, done.stderr
    assert "kikitori's demo corpus: validation 4 clips" in done.stdout
    assert "│ best" in done.stdout
    page = (cache / "report.html").read_text(encoding="utf-8")
    assert "trainer.max_steps=4" in page
    assert results(run[0])["git"]["commit"][:12] in page


@pytest.mark.long
def test_a_multirun_gives_every_job_a_folder_named_after_its_keys(cache: Path) -> None:
    overrides = [*SMALL, "logger=wandb", "hydra.sweep.dir=sweep", "optim.lr=1e-3,1e-4"]
    done = kikitori("train", "-m", *overrides, cache=cache)
    assert done.returncode == 0, done.stderr
    finished = sorted(path.parent for path in (cache / "sweep").rglob("results.json"))
    assert [folder.name for folder in finished] == ["0-optim.lr-0.001", "1-optim.lr-0.0001"]
    # Each job logs to its own W&B run.
    assert [len(list(folder.glob("wandb/offline-run-*"))) for folder in finished] == [1, 1]
    assert [OfflineRun(folder).run.run_group for folder in finished] == ["sweep", "sweep"]
    split = ["data=demo", "data.limit.test=5", "splits=[test]", "trainer.accelerator=cpu"]
    scored = kikitori("evaluate", *split, f"checkpoint={finished[1]}", "hydra.run.dir=swept", cache=cache)
    assert scored.returncode == 0, scored.stderr
    expected = results(finished[1])["scores"]["after"]["test"]
    assert results(cache / "swept")["scores"]["evaluated"] == {"test": expected}


def test_help_lists_the_commands_with_an_example_each(cache: Path) -> None:
    printed = kikitori("--help", cache=cache).stdout
    for command in ("train", "evaluate", "prepare", "transcribe", "compare", "push"):
        assert f"kikitori {command} " in printed
    groups = kikitori("train", "--help", cache=cache).stdout
    assert "model=whisper_small\n      Whisper to fine-tune: micro, whisper_base" in groups
    assert "release: ???" in kikitori("train", "--cfg", "job", cache=cache).stdout


def test_the_shell_completes_commands_choices_and_keys(cache: Path) -> None:
    def completed(line: str) -> list[str]:
        return kikitori("-sc", "query=bash", cache=cache, COMP_LINE=line, COMP_POINT=str(len(line))).stdout.split()

    assert completed("kikitori tr") == ["train", "transcribe"]
    assert "model=whisper_tiny" in completed("kikitori train model=whisper_t")
    assert "optim.lr=" in completed("kikitori train optim.l")


def test_an_unknown_command_is_refused_by_name(cache: Path) -> None:
    done = kikitori("trane", cache=cache)
    assert done.returncode == 1
    assert f"'trane' is not one of {', '.join(COMMANDS)}" in done.stderr
