"""The data that a trial sends to Weights & Biases, read from the file of an offline run."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from commands import SMALL, kikitori
from tracker import silent_server
from wandb_offline import OfflineRun

from kikitori.audio.waveform import decode, to_int16
from kikitori.runtime.paths import DEMO

pytestmark = pytest.mark.slow

SECRETS = {"WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567", "HF_TOKEN": "hf_thisMustStayHere"}
NAMED = [
    *("logger.wandb.project=whispers", 'logger.wandb.tags=[quick,"日本語"]', "logger.wandb.notes='How quick?'"),
    *("logger.wandb.log_model=true", "logger.wandb.aliases=[best,shown]", "trainer.log_every_n_steps=2"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wandb")


@pytest.fixture(scope="module")
def trial(cache: Path) -> tuple[Path, str]:
    """The folder of a completed trial of a sweep, and its stdout."""
    line = [*SMALL, *NAMED, "logger=both", "hydra.run.dir=sweep/3-optim.lr-0.001"]
    done = kikitori("train", *line, cache=cache, KIKITORI_SWEEP=str(cache / "sweep"), **SECRETS)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return cache / "sweep/3-optim.lr-0.001", done.stdout


@pytest.fixture(scope="module")
def sent(trial: tuple[Path, str]) -> OfflineRun:
    return OfflineRun(trial[0])


@pytest.fixture(scope="module")
def results(trial: tuple[Path, str]) -> dict[str, Any]:
    return json.loads((trial[0] / "results.json").read_text(encoding="utf-8"))


def test_a_trial_is_a_run_of_its_sweep(sent: OfflineRun, trial: tuple[Path, str]) -> None:
    run = sent.run
    assert (run.project, run.run_group, run.job_type) == ("whispers", "sweep", "train")
    assert (run.display_name, list(run.tags), run.notes) == ("3-optim.lr-0.001", ["quick", "日本語"], "How quick?")
    assert (trial[0] / "wandb/run-id").read_text() == run.run_id
    assert sent.exit_code == 0


def test_the_configuration_is_enough_to_repeat_the_run(sent: OfflineRun, results: dict[str, Any]) -> None:
    assert {key: sent.config[key] for key in results["config"]} == results["config"]
    assert sent.config["overrides"][: len(SMALL)] == SMALL
    assert sent.config["git"] == results["git"]
    assert sent.config["versions"] == results["versions"]


def test_the_history_has_scores_and_the_cost_of_steps(sent: OfflineRun, results: dict[str, Any]) -> None:
    assert sent.logged("val/cer") == pytest.approx([row["val/cer"] for row in results["history"]])
    for key in ("train/loss", "train/lr", "train/grad_norm", "train/clips_per_s", "train/audio_hours_per_s"):
        assert len(sent.logged(key)) == 2
        assert min(sent.logged(key)) > 0
    hours, clips = sent.logged("train/audio_hours_per_s"), sent.logged("train/clips_per_s")
    # The demo's sentences take about two seconds each.
    assert all(1 < 3600 * h / c < 4 for h, c in zip(hours, clips, strict=True))


def test_csv_and_tensorboard_have_the_cost_of_steps_too(trial: tuple[Path, str]) -> None:
    header = (trial[0] / "metrics.csv").read_text().splitlines()[0]
    events = b"".join(path.read_bytes() for path in (trial[0] / "tensorboard").glob("events.*"))
    for key in ("train/grad_norm", "train/clips_per_s", "train/audio_hours_per_s"):
        assert key in header
        assert key.encode() in events


def test_the_summary_has_the_best_cer_and_the_scores_of_each_split(sent: OfflineRun, results: dict[str, Any]) -> None:
    cers = [row["val/cer"] for row in results["history"]]
    assert sent.summary["val/cer"] == pytest.approx({"min": min(cers), "last": cers[-1]})
    for split in ("train", "validation", "test"):
        for stage in ("before", "after", "change"):
            for rate in ("cer", "wer"):
                assert sent.summary[f"{stage}/{split}/{rate}"] == results["scores"][stage][split][rate]
    assert sent.summary["cost/fit_s"] == results["cost"]["fit_s"]
    assert sent.summary["status"] == "completed"


def test_the_table_plays_validation_clips_with_the_worst_regressions_first(
    sent: OfflineRun, trial: tuple[Path, str]
) -> None:
    columns, rows, files = sent.table("validation_sample")
    assert columns == ["audio", "reference", "before", "after", "CER % before", "CER % after", "change"]
    changes = [row[-1] for row in rows]
    assert changes == sorted(changes, reverse=True)
    lines = (trial[0] / "predictions/validation_after.jsonl").read_text(encoding="utf-8").splitlines()
    after = {row["reference"]: row for row in map(json.loads, lines)}
    assert len(rows) == len(after) == 4
    for audio, reference, _, hypothesis, *rates in rows:
        clip = after[reference]
        assert hypothesis == clip["hypothesis"]
        assert rates[1] == pytest.approx(100 * clip["cer_edits"] / clip["cer_length"])
        samples, rate = soundfile.read(files[audio["path"]], dtype="int16")
        assert rate == 16_000
        np.testing.assert_array_equal(samples, to_int16(decode(DEMO / "clips" / clip["clip"])))
        # `wandb sync` finds the file later, because it is in the run's folder.
        assert files[audio["path"]].is_relative_to(trial[0])


def test_the_most_common_errors_are_listed(sent: OfflineRun) -> None:
    columns, rows, _ = sent.table("validation_errors")
    assert columns == ["kind", "reference", "hypothesis", "count"]
    assert {row[0] for row in rows} <= {"substitute", "delete", "insert"}
    assert rows[0][-1] == max(row[-1] for row in rows)


def test_the_best_model_is_uploaded_on_request(
    sent: OfflineRun, results: dict[str, Any], trial: tuple[Path, str]
) -> None:
    (model,) = sent.artifacts["model"]
    assert {"best", "shown"} <= set(model.aliases)
    assert json.loads(model.metadata)["val/cer"] == pytest.approx(results["checkpoint"]["value"])
    assert {content.path for content in model.manifest.contents} == {p.name for p in (trial[0] / "model").iterdir()}


def test_the_command_that_syncs_an_offline_run_is_printed(
    trial: tuple[Path, str], sent: OfflineRun, cache: Path
) -> None:
    (line,) = [line for line in trial[1].splitlines() if "wandb sync " in line]
    assert [cache / path for path in shlex.split(line.partition("wandb sync ")[2])] == [sent.path.parent]


def test_secrets_speakers_and_machine_details_are_not_sent(trial: tuple[Path, str], sent: OfflineRun) -> None:
    speakers = {line.split("\t")[0] for line in (DEMO / "train.tsv").read_text().splitlines()[1:]}
    private = [value.encode() for value in (*speakers, *SECRETS.values())]
    assert len(private) == 7
    read = [path for path in trial[0].rglob("*") if path.is_file()]
    assert sent.path in read
    for path in read:
        assert not any(value in path.read_bytes() for value in private), path
    assert sent.run.host == ""
    assert not sent.run.git.remote_url
    assert not sent.kinds & {"environment", "output_raw", "output"}


@pytest.mark.long
def test_a_failed_trial_is_marked_failed(cache: Path) -> None:
    # Its weights are soon not finite any more.
    line = [*SMALL, "logger=wandb", "optim.lr=1e30", "optim.warmup_steps=0", "hydra.run.dir=fails"]
    done = kikitori("train", *line, cache=cache)
    assert done.returncode == 1
    run = OfflineRun(cache / "fails")
    assert run.exit_code == 1
    assert run.summary["status"] == "failed"
    assert run.config["optim"]["lr"] == 1e30
    assert "wandb sync fails/wandb/offline-run-" in done.stdout


def test_audio_is_not_sent_if_the_configuration_excludes_it(cache: Path) -> None:
    line = [*SMALL, "logger=wandb", "logger.wandb.audio=false", "hydra.run.dir=silent"]
    done = kikitori("train", *line, cache=cache)
    assert done.returncode == 0, done.stderr
    run = OfflineRun(cache / "silent")
    columns, rows, files = run.table("validation_sample")
    assert columns[0] == "reference"
    assert len(rows) == 4
    assert not any(name.endswith(".wav") for name in files)
    assert "model" not in run.artifacts
    assert run.run.run_group == ""


def test_wandb_can_be_disabled(cache: Path) -> None:
    done = kikitori("train", *SMALL, "logger=wandb", "hydra.run.dir=disabled", cache=cache, WANDB_MODE="disabled")
    assert done.returncode == 0, done.stderr
    assert "wandb sync" not in done.stdout
    assert not list((cache / "disabled").glob("wandb/*run-2*"))


@pytest.mark.long
@pytest.mark.parametrize("after_the_start", [False, pytest.param(True, marks=pytest.mark.long)])
def test_an_unreachable_server_causes_only_a_warning(cache: Path, after_the_start: bool) -> None:
    folder = f"gone-{after_the_start}"
    with silent_server(after_the_start) as address:
        where = {**SECRETS, "WANDB_MODE": "online", "WANDB_BASE_URL": address}
        done = kikitori("train", *SMALL, "logger=wandb", f"hydra.run.dir={folder}", cache=cache, **where)
    assert done.returncode == 0, done.stderr
    assert "Weights & Biases: " in done.stdout + done.stderr
    assert json.loads((cache / folder / "results.json").read_text(encoding="utf-8"))["status"] == "completed"
    kind = "run" if after_the_start else "offline-run"
    assert f"wandb sync {folder}/wandb/{kind}-2" in done.stdout
    assert (cache / folder / "metrics.csv").exists()
