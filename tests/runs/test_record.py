import errno
import os
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from run_folders import write_run

from kikitori.runs.record import finish, record, timed
from kikitori.runs.resume import check_data
from kikitori.runtime.errors import ConfigError, TrainingError
from kikitori.runtime.files import read_json, write_json

RECIPE: dict[str, Any] = {"seed": 0, "resume": None, "resume_accept": [], "optim": {"lr": 1e-5, "betas": [0.9, 0.98]}}


def begin(folder: Path, **changes: Any) -> dict[str, Any]:
    results: dict[str, Any] = {}
    with record(results, "prepare", {**RECIPE, **changes}, folder):
        raise KeyboardInterrupt
    return results


def stopped(folder: Path, **changes: Any) -> dict[str, Any]:
    """results.json of a run that was stopped at once."""
    with pytest.raises(KeyboardInterrupt):
        begin(folder, **changes)
    return read_json(folder / "results.json")


def test_a_resumed_run_keeps_its_start_time_and_costs(tmp_path: Path) -> None:
    first = stopped(tmp_path)
    assert (first["status"], first["error"]) == ("failed", "KeyboardInterrupt: stopped")
    write_json(tmp_path / "results.json", {**first, "started": "then", "cost": {"fit_s": 5.0}})
    again = stopped(tmp_path, resume="auto")
    assert (again["started"], again["cost"]) == ("then", {"fit_s": 5.0})


def test_a_resumed_run_records_why_it_was_interrupted(tmp_path: Path) -> None:
    first = stopped(tmp_path)
    assert "interruptions" not in first
    second = stopped(tmp_path, resume="auto")
    write_json(tmp_path / "results.json", {**second, "status": "running"})  # as a kill leaves it
    third = stopped(tmp_path, resume="auto")
    assert [pause["reason"] for pause in third["interruptions"]] == ["KeyboardInterrupt: stopped", "killed"]


def test_seconds_are_added_up_over_all_parts_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("kikitori.runs.record.time.perf_counter", lambda: now[0])
    results: dict[str, Any] = {"cost": {"fit_s": 5.0}}
    with timed(results, "fit_s") as add:
        for seconds in (10.0, 12.0):  # written down twice on the way
            now[0] = seconds
            add()
            assert results["cost"]["fit_s"] == 5.0 + seconds
        now[0] = 20.0
    assert results["cost"]["fit_s"] == 25.0


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        ("all", {"checkpoints", "model", "predictions", "other"}),
        ("model", {"model", "predictions", "other"}),
        ("scores", {"predictions", "other"}),
    ],
)
def test_a_completed_run_keeps_what_is_configured_and_records_its_disk_use(
    tmp_path: Path, keep: str, left: set[str]
) -> None:
    results = read_json(write_run(tmp_path, config={"keep": keep}) / "results.json")
    results["scores"]["change"], results["data"]["rejects"] = results["scores"]["after"], {}
    for name in ("checkpoints/step-2.ckpt", "model/model.safetensors"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x" * 1000)
    os.link(tmp_path / "checkpoints/step-2.ckpt", tmp_path / "checkpoints/last.ckpt")
    finish(results, tmp_path)
    disk = read_json(tmp_path / "results.json")["disk"]
    assert set(disk) == left
    # A file with two names takes its space once.
    assert {size for name, size in disk.items() if name in ("checkpoints", "model")} <= {1000}
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == left - {"other"}
    assert (tmp_path / "results.md").read_text(encoding="utf-8").startswith("# micro on a corpus")


def test_a_run_is_replaced_only_if_it_failed_before_it_had_scores(tmp_path: Path) -> None:
    first = stopped(tmp_path)
    again = stopped(tmp_path, optim={"lr": 3e-5})
    assert again["config"]["optim"] == {"lr": 3e-5}
    write_json(tmp_path / "results.json", {**first, "scores": {"before": {"test": {"cer": 1.0}}}})
    with pytest.raises(ConfigError, match=r"already holds a run; choose another folder, or add resume=auto"):
        begin(tmp_path)


def test_a_changed_recipe_is_refused_unless_it_is_accepted(tmp_path: Path) -> None:
    stopped(tmp_path)
    other = {"optim": {"lr": 3e-5, "betas": [0.9, 0.999]}}
    both = r"'resume_accept=\[optim.lr,optim.betas\]'\n  optim.lr: was 1e-05, is now 3e-05\n"
    both += r"  optim.betas: was \[0.9, 0.98\]"
    with pytest.raises(ConfigError, match=both):
        begin(tmp_path, resume="auto", **other)
    with pytest.raises(ConfigError, match=r"'resume_accept=\[optim.lr,optim.betas\]'"):
        begin(tmp_path, resume="auto", resume_accept=["optim.lr"], **other)
    stopped(tmp_path, resume="auto", data={"num_workers": 8})
    stopped(tmp_path, resume="auto", resume_accept=["optim"], **other)


def test_changed_clips_are_refused_unless_they_are_accepted(tmp_path: Path) -> None:
    def facts(digest: str, clips: int) -> dict[str, Any]:
        return {"splits": {"train": {"digest": digest, "clips": clips}, "test": {"digest": "same", "clips": 3}}}

    before = {"data": facts("a", 36)}
    check_data(before, facts("a", 36), [], tmp_path)
    check_data({"data": {}}, facts("a", 36), [], tmp_path)
    message = (
        r"resume_accept=\[data\]'\n  data \(train\): audio, transcripts or languages have changed: 36 clips then, 35"
    )
    with pytest.raises(ConfigError, match=message):
        check_data(before, facts("b", 35), [], tmp_path)
    check_data(before, facts("b", 35), ["data"], tmp_path)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free space"), (errno.EACCES, "fix its permissions"), (errno.EIO, "check the disk")],
)
def test_an_error_of_the_disk_ends_the_run_with_the_remedy(tmp_path: Path, number: int, remedy: str) -> None:
    message = f"/far/file: {os.strerror(number)}; {remedy}, then resume with kikitori prepare resume="
    with pytest.raises(TrainingError, match=message), record({}, "prepare", RECIPE, tmp_path):
        raise OSError(number, os.strerror(number), "/far/file")
    assert read_json(tmp_path / "results.json")["status"] == "failed"


@pytest.mark.parametrize("status", ["completed", "pruned"])
def test_a_finished_run_is_not_resumed(tmp_path: Path, status: str) -> None:
    write_json(tmp_path / "results.json", {**stopped(tmp_path), "status": status})
    with pytest.raises(
        ConfigError, match=f"a run that is {status}: nothing is left to resume; start a new run in another"
    ):
        begin(tmp_path, resume="auto")


def test_a_run_folder_is_locked_against_a_second_process(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(ConfigError, match="is in use by another process"):
        begin(tmp_path)
