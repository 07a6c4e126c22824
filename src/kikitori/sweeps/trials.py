"""The trials of a sweep, and sweep.json, the record of them in the sweep's folder."""

import os
import shlex
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from kikitori.config.names import translate
from kikitori.config.overrides import config_folders, key_of, short_number, split_words
from kikitori.runs.results import FINISHED, PROGRESS, RESULTS, SWEEP, best_cer, read_results, read_sweep
from kikitori.runs.resume import MULTIRUN, START_KEYS, typed_again
from kikitori.runtime.errors import DataError, SweepError, describe_error
from kikitori.runtime.files import read_json, write_json

State = Literal["waiting", "running", "completed", "pruned", "failed"]
# Errors that the same configuration would meet again, as `error_type` in results.json. Others, a kill for example, are
# the machine's.
REPEATABLE = ("ConfigError", "Diverged", "OutOfMemory")
# What a trial's process writes to its terminal, in the trial's folder.
OUTPUT = "output.log"


@dataclass
class Trial:
    """One run of a sweep.

    folder: its name in the sweep's folder. overrides: all overrides of the run. swept: the keys that the sweep varies.
    log: path below the sweep's folder. seconds: run time of its processes, earlier attempts included. value: the best
    validation CER so far. is_repeatable: whether it failed in a way in which its configuration would fail again.
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
    is_repeatable: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether a resumed sweep leaves the trial as it is."""
        return self.state in FINISHED or self.is_repeatable

    @property
    def label(self) -> str:
        """The swept keys with this trial's values, numbers of many digits shortened."""
        return " ".join(f"{key}={short_number(value)}" for key, value in self.swept.items()) or self.folder


@dataclass
class Sweep:
    """The trials of a folder, kept in sweep.json.

    command: the words of the command line. num_trials: how many trials are planned, None where that is not known.
    """

    folder: Path
    command: list[str]
    trials: list[Trial] = field(default_factory=list)
    started: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    # A study refers to the sweep by this: the folder may be moved, and folders on two machines may share a name.
    id: str = field(default_factory=lambda: uuid4().hex)
    num_trials: int | None = field(default=None, compare=False)

    def save(self) -> None:
        """Writes sweep.json."""
        # Paths in the command are relative to the working folder.
        facts = {"id": self.id, "command": self.command, "cwd": os.getcwd(), "started": self.started}
        write_json(self.folder / SWEEP, {**facts, "trials": [asdict(trial) for trial in self.trials]})

    def add(self, trial: Trial) -> Trial:
        """Adds a trial, or returns the one with its number. Raises SweepError if that one has other overrides."""
        known = next((t for t in self.trials if t.number == trial.number), None)
        if known is None:
            self.trials.append(trial)
            return trial
        old, new = (set(filter(_is_permanent, t.overrides)) for t in (known, trial))
        if old != new:
            was, now = (", ".join(sorted(values)) or "no further overrides" for values in (old - new, new - old))
            raise SweepError(
                f"resume_sweep={self.folder}: trial {trial.number} was started with {was}; this command gives {now}; "
                f"resume it with {self.resume_command}, or start a sweep in another folder"
            )
        self._move(known, trial.folder)
        known.overrides = trial.overrides
        return known

    def _move(self, trial: Trial, name: str) -> None:
        """Renames a trial's folder, which has the names of its swept keys, if one of them has a new name."""
        old, new = self.folder / trial.folder, self.folder / name
        if old != new and old.is_dir() and not new.exists():
            old.rename(new)
            trial.log = trial.log.replace(trial.folder, name, 1)
        trial.folder = name

    def failures(self) -> list[Trial]:
        """Trials that are neither completed nor pruned."""
        return [trial for trial in self.trials if trial.state not in FINISHED]

    def best(self) -> Trial | None:
        """The completed trial with the lowest validation CER."""
        completed = [trial for trial in self.trials if trial.state == "completed" and trial.value is not None]
        return min(completed, key=lambda trial: trial.value or 0.0, default=None)

    @property
    def resume_command(self) -> str:
        """The command line that runs what is missing or failed."""
        again = typed_again(split_words(self.command[2:])[1])
        return shlex.join([*self._program, "-m", f"resume_sweep={self.folder}", *again])

    def run_command(self, trial: Trial) -> str:
        """The command line that runs a trial's configuration by itself."""
        options = [word for word in split_words(self.command[2:])[0] if word not in MULTIRUN]
        words = [word for word in trial.overrides if _is_permanent(word) and key_of(word) not in START_KEYS]
        return shlex.join([*self._program, *options, *words])

    @property
    def _program(self) -> list[str]:
        return ["kikitori", self.command[1] if len(self.command) > 1 else "train"]


def open_sweep(folder: Path, command: list[str], resume: str | None) -> Sweep:
    """Starts a sweep in this folder, or reopens the one to resume.

    Raises SweepError if a new sweep would replace one, DataError if the one to resume cannot be read.
    """
    path = folder / SWEEP
    if not resume:
        if path.exists():
            hint = Sweep(folder, command).resume_command
            raise SweepError(
                f"hydra.sweep.dir={folder} already holds a sweep; choose another folder, or resume: {hint}"
            )
        return Sweep(folder, command)
    facts = read_sweep(folder)
    own = config_folders(facts.get("command", []))
    trials = [_read_trial(trial, own) for trial in facts["trials"]]
    return Sweep(folder, command, trials, **{key: facts[key] for key in ("started", "id") if key in facts})


def _read_trial(recorded: Mapping[str, Any], own: Sequence[Path]) -> Trial:
    """A trial from sweep.json, with the names of this version. own: the user's configuration folders."""
    facts = {known.name: recorded[known.name] for known in fields(Trial) if known.name in recorded}
    swept = dict(translate(f"{key}={value}", own).split("=", 1) for key, value in facts["swept"].items())
    return Trial(**{**facts, "overrides": [translate(text, own) for text in facts["overrides"]], "swept": swept})


def update_state(trial: Trial, folder: Path, code: int | None, since: float = 0.0) -> None:
    """Sets a trial's state, reason and value from the files in its folder.

    code: exit code of its process, None where none was run. since: modification times before this, the start of that
    process, belong to an earlier attempt, whose error is ignored.
    """
    path, results = folder / RESULTS, {}
    damage = ""
    try:
        results = read_results(folder) if path.exists() else {}
    except DataError as error:
        damage = describe_error(error)
    status, is_current = results.get("status"), path.exists() and path.stat().st_mtime >= since
    trial.value = best_cer(results)
    trial.is_repeatable = bool(status == "failed" and is_current and results.get("error_type") in REPEATABLE)
    if status in FINISHED:
        trial.state, trial.reason = status, results.get("error", "")
    elif trial.is_repeatable:
        trial.state, trial.reason = "failed", results.get("error", "")
    elif code is None:
        trial.state = "waiting"
    else:
        reason = damage or (results.get("error") if is_current else "")
        trial.state, trial.reason = "failed", reason or exit_reason(code, folder / OUTPUT)


def exit_reason(code: int, log: Path) -> str:
    """Explains why a process that wrote no error ended, from its exit code and the last line of its output."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + " (out of memory?)" * (name == "SIGKILL")
    lines = [line for line in tail(log) if line.strip() and "HYDRA_FULL_ERROR" not in line]
    return lines[-1].strip() if lines else f"ended with exit code {code}"


def tail(path: Path, size: int = 4000) -> list[str]:
    """The last lines of a file; none where it does not exist."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def progress(folder: Path) -> dict[str, Any]:
    """Reads a trial's progress.json; empty before the first step."""
    try:
        return read_json(folder / PROGRESS)
    except DataError:
        return {}


def _is_permanent(override: str) -> bool:
    """Whether an override stays the same when its trial is run again; the trial's number in a study does not."""
    return not override.startswith("+callbacks.pruning=")
