"""A sweep's folder: its trials, how each stands, and sweep.json, which says so to everybody else."""

import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from kikitori.config.names import translate
from kikitori.runs.results import FINISHED, best_cer
from kikitori.runtime.errors import DataError, SweepError
from kikitori.runtime.files import read_json, write_json

State = Literal["waiting", "running", "completed", "pruned", "failed"]


@dataclass
class Trial:
    """One run of a sweep. folder: a name in the sweep's. overrides: all of the run's. swept: what the sweep varies.

    seconds: how long its processes took, those of an earlier start included. value: the best validation CER so far.
    """

    number: int
    folder: str
    overrides: list[str]
    swept: dict[str, str]
    state: State = "waiting"
    reason: str = ""
    log: str = ""
    seconds: float = 0.0
    value: float | None = None

    @property
    def label(self) -> str:
        """What it varies, for a person."""
        return " ".join(f"{key}={value}" for key, value in self.swept.items()) or self.folder


@dataclass
class Sweep:
    """The trials of a folder, kept in sweep.json."""

    folder: Path
    command: list[str]
    trials: list[Trial] = field(default_factory=list)
    started: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    # What a study knows the sweep by: its folder may be moved, and two machines may have folders of one name.
    id: str = field(default_factory=lambda: uuid4().hex)

    def save(self) -> None:
        """Write sweep.json."""
        facts = {"id": self.id, "command": self.command, "started": self.started}
        write_json(self.folder / "sweep.json", {**facts, "trials": [asdict(trial) for trial in self.trials]})

    def add(self, trial: Trial) -> Trial:
        """Take in a trial, or give back the one of its number. Raises SweepError where that one is another."""
        known = next((t for t in self.trials if t.number == trial.number), None)
        if known is None:
            self.trials.append(trial)
            return trial
        old, new = (set(filter(_lasts, t.overrides)) for t in (known, trial))
        if old != new:
            was, now = (", ".join(sorted(values)) or "nothing of it" for values in (old - new, new - old))
            raise SweepError(
                f"resume_sweep={self.folder}: its trial {trial.number} has {was}, this command gives {now}; "
                "give the same command again, or start a sweep of its own"
            )
        self._move(known, trial.folder)
        known.overrides = trial.overrides
        return known

    def _move(self, trial: Trial, name: str) -> None:
        """Renames a trial's folder, which has the names of its swept keys, if one of them has a new name."""
        old, new = self.folder / trial.folder, self.folder / name
        # sweep.json may name any folder; only one of this sweep is moved.
        if old != new and old.is_dir() and old.resolve().parent == self.folder.resolve() and not new.exists():
            old.rename(new)
            trial.log = trial.log.replace(trial.folder, name, 1)
        trial.folder = name

    def failures(self) -> list[Trial]:
        """Trials that are neither completed nor pruned."""
        return [trial for trial in self.trials if trial.state not in FINISHED]


def open_sweep(folder: Path, command: list[str], resume: str | None) -> Sweep:
    """A sweep begun in this folder, or gone on with. Raises SweepError where there is one already, or none."""
    path = folder / "sweep.json"
    if resume and not path.exists():
        raise SweepError(f"resume_sweep={resume} holds no sweep.json; give the folder of a sweep, or leave it out")
    if not resume:
        if path.exists():
            raise SweepError(f"hydra.sweep.dir={folder} already holds a sweep; go on with resume_sweep={folder}")
        return Sweep(folder, command)
    facts = read_json(path)
    try:
        return Sweep(folder, command, [_read_trial(trial) for trial in facts["trials"]], facts["started"], facts["id"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is no record of a sweep ({error}); start a sweep of its own") from error


def _read_trial(facts: Mapping[str, Any]) -> Trial:
    """A trial from sweep.json, with the names of this version."""
    swept = dict(translate(f"{key}={value}").split("=", 1) for key, value in facts["swept"].items())
    return Trial(**{**facts, "overrides": [translate(text) for text in facts["overrides"]], "swept": swept})


def update_state(trial: Trial, folder: Path, code: int | None, since: float = 0.0) -> None:
    """Say how a trial stands by what its folder holds; `code` is its process's exit, None where none has run now.

    since: when that process began, by the clock of files. What an earlier one wrote of its failure is not this one's.
    """
    path, results = folder / "results.json", {}
    fault = ""
    try:
        results = read_json(path) if path.exists() else {}
    except DataError as error:
        fault = str(error)
    status, own = results.get("status"), path.exists() and path.stat().st_mtime >= since
    trial.value = best_cer(results)
    if status in FINISHED:
        trial.state, trial.reason = status, results.get("error", "")
    elif code is None:
        trial.state = "waiting"
    else:
        told = fault or (results.get("error") if own else "")
        trial.state, trial.reason = "failed", told or exit_reason(code, folder / "output.log")


def exit_reason(code: int, log: Path) -> str:
    """Why a process that left no results ended, from its exit code and the last line that it wrote."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + " (out of memory?)" * (name == "SIGKILL")
    lines = [line for line in tail(log) if line.strip() and "HYDRA_FULL_ERROR" not in line]
    return lines[-1].strip() if lines else f"ended with exit code {code}"


def tail(path: Path, size: int = 4000) -> list[str]:
    """The last lines of a file that may not be there."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def progress(folder: Path) -> dict[str, Any]:
    """How far a trial says it is; empty before its first step."""
    try:
        return read_json(folder / "progress.json")
    except DataError:
        return {}


def _lasts(override: str) -> bool:
    """Whether an override is the same when its trial is tried again: the trial's number in a study is not."""
    return not override.startswith("+callbacks.pruning=")
