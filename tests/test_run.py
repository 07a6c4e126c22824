from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from omegaconf import OmegaConf

from kikitori.errors import ConfigError
from kikitori.report import read_json, write_json
from kikitori.run import record

RECIPE: dict[str, Any] = {"seed": 0, "resume": False, "optim": {"lr": 1e-5, "betas": [0.9, 0.98]}}


def begin(folder: Path, **changes: Any) -> dict[str, Any]:
    with record("prepare", OmegaConf.create({**RECIPE, **changes}), folder) as results:
        kept = dict(results)
        raise KeyboardInterrupt
    return kept


def stopped(folder: Path, **changes: Any) -> dict[str, Any]:
    """results.json of a run that was stopped at once."""
    with pytest.raises(KeyboardInterrupt):
        begin(folder, **changes)
    return read_json(folder / "results.json")


def test_a_run_that_is_stopped_says_so_and_goes_on_from_its_start(tmp_path: Path) -> None:
    first = stopped(tmp_path)
    assert (first["status"], first["error"]) == ("failed", "KeyboardInterrupt: stopped")
    write_json(tmp_path / "results.json", {**first, "started": "then", "cost": {"fit_s": 5.0}})
    again = stopped(tmp_path, resume=True)
    assert (again["started"], again["cost"]) == ("then", {"fit_s": 5.0})


def test_a_run_is_resumed_with_its_own_recipe_alone(tmp_path: Path) -> None:
    stopped(tmp_path)
    with pytest.raises(ConfigError, match=r"holds a run with another optim\.lr; resume it as it was"):
        begin(tmp_path, resume=True, optim={"lr": 3e-5, "betas": [0.9, 0.98]})
    stopped(tmp_path, resume=True, data={"num_workers": 8})


@pytest.mark.parametrize("status", ["completed", "pruned"])
def test_a_finished_run_is_not_resumed(tmp_path: Path, status: str) -> None:
    write_json(tmp_path / "results.json", {**stopped(tmp_path), "status": status})
    with pytest.raises(ConfigError, match=f"a run that is {status}: nothing is left to resume"):
        begin(tmp_path, resume=True)


def test_two_processes_do_not_run_in_one_folder(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(ConfigError, match="is being run by another process"):
        begin(tmp_path)
