import errno
import os
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from kikitori.runs.record import record
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
    with pytest.raises(ConfigError, match=r"'resume_accept=\[optim.betas\]'"):
        begin(tmp_path, resume="auto", resume_accept=["optim.lr"], **other)
    stopped(tmp_path, resume="auto", data={"num_workers": 8})
    stopped(tmp_path, resume="auto", resume_accept=["optim"], **other)


def test_changed_clips_are_refused_unless_they_are_accepted(tmp_path: Path) -> None:
    def facts(digest: str, clips: int) -> dict[str, Any]:
        return {"splits": {"train": {"digest": digest, "clips": clips}, "test": {"digest": "same", "clips": 3}}}

    before = {"data": facts("a", 36)}
    check_data(before, facts("a", 36), [], tmp_path)
    check_data({"data": {}}, facts("a", 36), [], tmp_path)
    message = r"resume_accept=\[data\]'\n  data \(train\): audio or transcripts have changed: 36 clips then, 35 now$"
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
