"""Runs and sweeps as they lie on disk: found, read, and told apart by what was chosen for them.

Nothing that one run's folder holds, or lacks, ends the reading of the others: such a run has a status and a reason.
"""

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any

import yaml

from kikitori.config.overrides import flatten
from kikitori.runs.results import predictions_file
from kikitori.runtime.errors import DataError
from kikitori.runtime.files import read_lines

# What may differ between two runs of one configuration: a seed, and where things are written.
NO_CHOICE = re.compile(
    r"seed|resume|(resume_)?accept|resume_sweep|logger\b.*|sweep\b.*|hydra\b.*|callbacks\.pruning\b.*|.*\.dirpath|.*\.default_root_dir"
)
ENDED = ("completed", "failed", "pruned")
HOW = "give run folders, sweep folders or a quoted glob, such as 'outputs/train/*/*'"


@dataclass(frozen=True)
class Run:
    """One run: `results` as results.json holds it, empty where that cannot be read.

    status: completed, pruned, failed, running, waiting or unreadable; reason: why it is not completed.
    """

    folder: Path
    name: str
    status: str
    reason: str = ""
    log: Path | None = None
    results: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stage(self) -> str:
        """Under which name the scores stand that count: a training's best checkpoint, or an evaluation."""
        return "evaluated" if self.results.get("command") == "evaluate" else "after"

    def score(self, split: str, rate: str = "cer", stage: str = "") -> float | None:
        """A rate as a fraction, or None where that split was not scored."""
        rates = self.results.get("scores", {}).get(stage or self.stage, {}).get(split)
        return None if rates is None else float(rates[rate])

    def predictions_path(self, split: str, stage: str = "") -> Path:
        """The file of what was read of each clip."""
        return predictions_file(self.folder, split, stage or self.stage)

    def predictions(self, split: str, stage: str = "") -> list[dict[str, Any]]:
        """The rows of that file in the order of the clips' names; none where it is missing or cut off."""
        try:
            return sorted(
                read_lines(self.predictions_path(split, stage)), key=lambda row: (row["clip"], row["reference"])
            )
        except (OSError, ValueError, KeyError, TypeError):
            return []

    @cached_property
    def overrides(self) -> list[str]:
        """What was written behind the command; a sweep's trial has its own values here."""
        given = self.results.get("overrides") or _hydra_overrides(self.folder)
        # What ties a trial to the study of its search is not to be written there again.
        return [override for override in given if not override.startswith("+callbacks.pruning=")]

    @property
    def command(self) -> str:
        """The line that makes this run again."""
        return shlex.join(["kikitori", self.results.get("command", "train"), *self.overrides])

    @cached_property
    def choices(self) -> dict[str, Any]:
        """The configuration by dotted key, the name of a chosen group (model=whisper_small) among them."""
        config = self.results.get("config", {})
        chosen = {key: value for key, _, value in (text.lstrip("+~").partition("=") for text in self.overrides)}
        groups = {key: value for key, value in chosen.items() if isinstance(config.get(key), dict | None)}
        return {k: v for k, v in [*groups.items(), *flatten(config)] if not NO_CHOICE.fullmatch(k)}

    @cached_property
    def identity(self) -> str:
        """Equal for runs that differ in nothing but their seed."""
        leaves = {k: v for k, v in flatten(self.results.get("config", {})) if not NO_CHOICE.fullmatch(k)}
        return json.dumps([self.results.get("command"), leaves], sort_keys=True, default=str)


def varying_keys(runs: Sequence[Run]) -> list[str]:
    """The keys whose values tell the runs' configurations apart: those given on their command lines where they do.

    What a group or an interpolation brings along (model=whisper_small changes a dozen keys) would be columns of noise.
    """
    keys = dict.fromkeys(key for run in runs for key in run.choices)
    differing = [k for k in keys if len({repr(run.choices.get(k)) for run in runs}) > 1]
    given = {text.lstrip("+~").partition("=")[0] for run in runs for text in run.overrides}
    named = [key for key in differing if key in given]
    told_apart = {tuple(repr(run.choices.get(key)) for key in named) for run in runs}
    return named if len(told_apart) == len({run.identity for run in runs}) else differing


def find_runs(places: Sequence[str]) -> list[Run]:
    """Every run in the named folders, sweeps and globs, once each.

    Raises DataError where a place does not exist, or holds no run.
    """
    # A shell that expands a sweep's * names its sweep.json too.
    named = [place for place in places if not Path(place).expanduser().is_file()]
    if not named:
        raise DataError(f"{places[0]} is a file; {HOW}")
    folders = list(dict.fromkeys(folder.resolve() for place in named for folder in _run_folders(place)))
    sweeps: dict[Path, dict[Path, Any]] = {}
    for parent in {folder.parent for folder in folders}:
        sweeps[parent] = _trials(parent)
    common = Path(os.path.commonpath([folder.parent for folder in folders]))
    return [read_run(f, f.relative_to(common).as_posix(), sweeps[f.parent].get(f, {})) for f in folders]


def read_run(folder: Path, name: str, trial: Mapping[str, Any]) -> Run:
    """A run from its folder and, for a trial of a sweep, from what the sweep knows of it."""
    log = next(
        (path for path in (folder.parent / str(trial.get("log") or "-"), *folder.glob("*.log")) if path.is_file()), None
    )
    path = folder / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        results["status"], results["scores"], results["config"]
    except FileNotFoundError:
        status = trial.get("state", "failed")
        without = {"waiting": "not started yet", "running": "wrote no results.json so far"}
        return Run(folder, name, status, trial.get("reason") or without.get(status, "left no results.json"), log)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Run(folder, name, "unreadable", f"results.json is damaged or cut off ({error!r})", log)
    status, reason = results["status"], results.get("error") or ""
    if status not in ENDED:
        # Who is killed cannot say so; its sweep can.
        written = datetime.fromtimestamp(path.stat().st_mtime).isoformat(" ", "minutes")
        reason = f"not ended: still running, or killed without a word (results.json was written {written})"
        if trial.get("state") in ENDED:
            status, reason = "failed", trial.get("reason") or "killed"
    elif status == "completed":
        stage = "evaluated" if results.get("command") == "evaluate" else "after"
        if not results["scores"].get(stage):
            status, reason = "unreadable", f"results.json says completed, but holds no scores.{stage}"
    elif not reason:
        reason = trial.get("reason") or f"no reason is given; see {log.name if log else 'its log'}"
    return Run(folder, name, status, reason, log, results)


def _run_folders(place: str) -> list[Path]:
    path = Path(place).expanduser()
    matched = (
        [path] if path.exists() else [Path(p) for p in sorted(glob(str(path), recursive=True)) if Path(p).is_dir()]
    )
    if not matched:
        raise DataError(f"{place} {'matches no folder' if set('*?[') & set(place) else 'does not exist'}; {HOW}")
    found = [folder for match in matched for folder in _below(match)]
    if not found:
        raise DataError(f"{place} holds no run: there is no results.json in it or below it; {HOW}")
    return found


def _below(folder: Path) -> list[Path]:
    """A run's folder itself; else the runs below it, with the trials that came to nothing."""
    if (folder / "results.json").exists():
        return [folder]
    runs = {path.parent for path in folder.rglob("results.json")}
    trials = {trial for path in folder.rglob("sweep.json") for trial in _trials(path.parent)}
    return sorted(runs | trials, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts 10-lr after 9-lr."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", str(path))]


def _trials(sweep: Path) -> dict[Path, Any]:
    """What sweep.json says of each trial, by the trial's folder; nothing where there is none or it is damaged."""
    try:
        trials = json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))["trials"]
        return {sweep / trial["folder"]: trial for trial in trials}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _hydra_overrides(folder: Path) -> list[str]:
    """The overrides as Hydra wrote them down; results.json of older runs does not have them."""
    try:
        overrides = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return []
    return [str(text) for text in overrides or []]
