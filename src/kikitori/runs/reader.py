"""Finds and reads run folders and sweeps.

A damaged or missing file of one run never prevents reading the others: such a run has a status and a reason.
"""

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, lru_cache
from glob import glob
from pathlib import Path
from typing import Any

import yaml

from kikitori.config.names import OF_TRAINING, translate
from kikitori.config.overrides import config_folders, flatten
from kikitori.metrics.error_rates import (
    clip_score,
    corpus_rate,
    edits_and_lengths,
    rescored,
    row_language,
    summarise,
)
from kikitori.metrics.normalizer import text_rules
from kikitori.runs.results import RESULTS, SWEEP, predictions_file, read_predictions, read_results, read_sweep
from kikitori.runtime.errors import DataError, one_line
from kikitori.runtime.files import UNREADABLE, check_extent, expanded, parse, read_text
from kikitori.runtime.paths import DEEPEST
from kikitori.runtime.processes import is_locked

# Keys in which two runs of one configuration may differ: the seed, and where things are written.
NOT_IDENTITY = re.compile(
    r"seed|keep|guard\b.*|resume|(resume_)?accept|resume_sweep|logger\b.*|sweep\b.*|hydra\b.*|callbacks\.pruning\b.*"
    r"|.*\.dirpath|.*\.default_root_dir|trainer\.deterministic"
)
# Settings of a training, which say nothing about an evaluation.
NOT_OF_AN_EVALUATION = re.compile(
    "|".join(map(re.escape, OF_TRAINING)) + r"|score\.train_clips"
    r"|data\.(global_batch_size|full_window_share|cache_encoder_outputs|group_by_length)|" + NOT_IDENTITY.pattern
)
# An evaluated checkpoint brings its own model; the configuration only sets its language and task.
NOT_OF_A_CHECKPOINT = re.compile(rf"model(?!\.(language|task)$)\b.*|{NOT_OF_AN_EVALUATION.pattern}")
# Records of a run that do not describe the pretrained model that it began with.
NOT_OF_A_BASE = ("config", "cost", "history", "overrides", "options")
ENDED = ("completed", "failed", "pruned")
# Bytes of a file of overrides.
MAX_OVERRIDES = 2**16
USAGE = "give run folders, sweep folders or a quoted glob, such as 'outputs/train/*/*'"


@dataclass(frozen=True)
class Run:
    """One run. `results` is the content of results.json, empty if that cannot be read.

    status: completed, pruned, failed, stopped, running, waiting or unreadable; reason: why it is not completed.
    is_base: whether this is the pretrained model that a run began with, scored before training.
    """

    folder: Path
    name: str
    status: str
    reason: str = ""
    log: Path | None = None
    results: Mapping[str, Any] = field(default_factory=dict)
    is_base: bool = False

    def base(self) -> "Run | None":
        """The pretrained model that this run began with, as a run; None for random weights, or if it was not scored."""
        model = self.results.get("config", {}).get("model") or {}
        if not model.get("name") or self.score("validation", stage="before") is None:
            return None
        # It has no settings and no costs of its own.
        results = {key: value for key, value in self.results.items() if key not in NOT_OF_A_BASE} | {"config": {}}
        name = f"{self.results.get('model', {}).get('name', model['name'])} before training"
        return Run(self.folder, name, "completed", results=results, is_base=True)

    @property
    def stage(self) -> str:
        """The stage that counts: `after` for a training (its best checkpoint), `evaluated` for an evaluation."""
        if self.is_base:
            return "before"
        return "evaluated" if self.results.get("command") == "evaluate" else "after"

    @property
    def text_language(self) -> str:
        """The language by whose rules the transcripts are scored."""
        return str(self.results.get("scoring", {}).get("language") or _text_language(self.results))

    @property
    def has_languages(self) -> bool:
        """Whether each transcript is scored by the rules of its own language."""
        return "languages" in self.results.get("scoring", {})

    def language_of(self, row: Mapping[str, Any]) -> str:
        """The language by whose rules a transcript is scored."""
        return row_language(row, self.text_language, self.has_languages)

    @property
    def is_rescored(self) -> bool:
        """Whether scores are computed from the transcripts, because those in results.json are by other rules."""
        return "recorded" in self.results.get("scoring", {})

    def score(self, split: str, rate: str = "cer", stage: str = "") -> float | None:
        """A rate as a fraction, or None if that split was not scored."""
        rates = self.results.get("scores", {}).get(stage or self.stage, {}).get(split)
        if rates is not None and self.is_rescored:
            return corpus_rate(edits_and_lengths([clip_score(row) for row in self.predictions(split, stage)], rate))
        return None if rates is None else rates.get(rate)

    def language_scores(self, split: str) -> dict[str, float]:
        """The CER of each language of a split, if there are several."""
        rates = self.results.get("scores", {}).get(self.stage, {}).get(split, {})
        if self.is_rescored:
            rates = summarise([clip_score(row) for row in self.predictions(split)])
        return {code: of["cer"] for code, of in rates.get("languages", {}).items()}

    def predictions_path(self, split: str, stage: str = "") -> Path:
        """The file with each clip's transcript."""
        return predictions_file(self.folder, split, stage or self.stage)

    def predictions(self, split: str, stage: str = "") -> list[dict[str, Any]]:
        """The rows of that file, sorted by clip name; empty if it is missing or truncated."""
        path = self.predictions_path(split, stage)
        try:
            rules = (self.text_language, self.has_languages)
            rows = _rescored_rows(path, *rules) if self.is_rescored else read_predictions(path)
        except DataError:
            return []
        return sorted(rows, key=lambda row: (row["clip"], row["reference"]))

    @cached_property
    def overrides(self) -> list[str]:
        """The overrides of the command line; a trial's include the values of its sweep."""
        given = [] if self.is_base else self.results.get("overrides") or _hydra_overrides(self.folder)
        own = config_folders([*(self.results.get("options") or []), *given])
        # A trial's link to its Optuna study is not part of its recipe.
        return [translate(override, own) for override in given if not override.startswith("+callbacks.pruning=")]

    @property
    def command(self) -> str:
        """The command that repeats this run."""
        words = [*(self.results.get("options") or []), *self.overrides]
        return shlex.join(["kikitori", self.results.get("command", "train"), *words])

    @cached_property
    def choices(self) -> dict[str, Any]:
        """The configuration by dotted key, with the names of chosen groups (model=whisper_small)."""
        config = self.results.get("config", {})
        chosen = {key: value for key, _, value in (text.lstrip("+~").partition("=") for text in self.overrides)}
        groups = {key: value for key, value in chosen.items() if isinstance(config.get(key), dict | None)}
        is_evaluation = self.results.get("command") == "evaluate"
        of_its_kind = NOT_OF_AN_EVALUATION if is_evaluation else NOT_IDENTITY
        ignored = NOT_OF_A_CHECKPOINT if config.get("checkpoint") else of_its_kind
        return {k: v for k, v in [*groups.items(), *_settings(self.results)] if not ignored.fullmatch(k)}

    @cached_property
    def identity(self) -> str:
        """A key that is equal for runs that differ in their seed only."""
        if self.is_base:
            # Early versions did not record the language and the task.
            model = {k: v for k, v in self.results.get("model", {}).items() if k not in ("language", "task", "notes")}
            return json.dumps(["base", model, self.text_language], sort_keys=True, default=str)
        # A key without a value is like one that an earlier version did not have.
        leaves = {k: v for k, v in _settings(self.results) if v is not None and not NOT_IDENTITY.fullmatch(k)}
        return json.dumps([self.results.get("command"), leaves], sort_keys=True, default=str)


def varying_keys(runs: Sequence[Run]) -> list[str]:
    """The keys that distinguish the runs' configurations, reduced to those given on command lines if these suffice.

    A group or an interpolation changes many keys at once (model=whisper_small a dozen), which
    would be columns of noise.
    """
    keys = dict.fromkeys(key for run in runs for key in run.choices)
    differing = [k for k in keys if len({repr(run.choices.get(k)) for run in runs}) > 1]
    given = {text.lstrip("+~").partition("=")[0] for run in runs for text in run.overrides}
    named = [key for key in differing if key in given]
    distinguished = {tuple(repr(run.choices.get(key)) for key in named) for run in runs}
    return named if len(distinguished) == len({run.identity for run in runs}) else differing


def find_runs(places: str | Path | Sequence[str | Path]) -> list[Run]:
    """Every run in the given folders, sweeps and globs, once each; one place may be given without a list.

    A run has its `status`, its `results` (the content of results.json), `score(split)` and `predictions(split)`.
    Raises DataError if a place does not exist or holds no run.
    """
    given = [str(place) for place in ([places] if isinstance(places, str | Path) else places)]
    # A shell that expands `sweep/*` also lists sweep.json.
    named = [place for place in given if not expanded(place).is_file()]
    if not named:
        raise DataError(f"{given[0]} is a file; {USAGE}")
    folders = list(dict.fromkeys(folder.resolve() for place in named for folder in _run_folders(place)))
    sweeps = {parent: _trials(parent) for parent in {folder.parent for folder in folders}}
    common = Path(os.path.commonpath([folder.parent for folder in folders]))
    return [read_run(f, f.relative_to(common).as_posix(), sweeps[f.parent].get(f, {})) for f in folders]


def read_run(folder: Path, name: str, trial: Mapping[str, Any]) -> Run:
    """Reads a run from its folder; `trial` is its entry in sweep.json, empty for a run outside a sweep."""
    log = None
    try:
        log = _log_of(folder, trial)
        if not (folder / RESULTS).exists():
            # A completed one was deleted.
            status = "failed" if (state := trial.get("state", "failed")) == "completed" else state
            without = {"waiting": "not started yet", "running": "has not written results.json yet"}
            return Run(folder, name, status, trial.get("reason") or without.get(status, "left no results.json"), log)
        results = read_results(folder)
        if missing := {"status", "scores", "config"} - results.keys():
            raise DataError(f"it lacks {' and '.join(sorted(missing))}")
        results["scoring"] = _todays_scoring(results, folder)
        run = Run(folder, name, *_status(folder, results, trial, log), log, results)
        run.identity, run.choices, run.command  # noqa: B018 - what is computed from the results can be
    except OSError as error:
        return Run(folder, name, "unreadable", f"cannot be read ({error.strerror})", log)
    except Exception as error:  # a folder may hold anything, and the others are read all the same
        return Run(folder, name, "unreadable", f"results.json is damaged or cut off ({one_line(error)})", log)
    return run


def _log_of(folder: Path, trial: Mapping[str, Any]) -> Path | None:
    """What a run has written to its terminal or its log. Raises OSError if the folder cannot be looked into."""
    logs = [folder.parent / (trial.get("log") or "-"), *folder.glob("*.log")]
    return next((path for path in logs if path.is_file()), None)


def _status(folder: Path, results: Mapping[str, Any], trial: Mapping[str, Any], log: Path | None) -> tuple[str, str]:
    """The status of a run that has results, and why it is not completed."""
    status, reason = results["status"], results.get("error") or ""
    if status not in ENDED:
        # A killed run cannot record its end; its sweep can.
        written = datetime.fromtimestamp((folder / RESULTS).stat().st_mtime).isoformat(" ", "minutes")
        is_running = is_locked(folder)
        state = (
            "still running" if is_running else "killed, or running on another machine: no process here holds its lock"
        )
        reason = f"{state} (results.json was last written {written})"
        if not is_running and trial.get("state") in ENDED:
            status, reason = "failed", trial.get("reason") or "killed"
    elif status == "completed":
        stage = "evaluated" if results.get("command") == "evaluate" else "after"
        if not results["scores"].get(stage):
            status, reason = "unreadable", f"results.json is completed, but lacks scores.{stage}"
    elif reason.startswith("stopped by SIG"):
        status = "stopped"
    elif not reason:
        reason = trial.get("reason") or f"no reason recorded; see {log.name if log else 'its log'}"
    return status, reason


def _settings(results: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The configuration by dotted key. An evaluation that set no language or task has those of the model.

    Without keys that are null, since an earlier version may not have had them, and without a share of steps in the full
    window where all are, since its default has changed.
    """
    used, config = results.get("model", {}), results.get("config", {})
    full = config.get("data", {}).get("window") == "full"
    for key, value in flatten(config):
        if full and key == "data.full_window_share":
            continue
        known = used.get(key[6:]) if value is None and key in ("model.language", "model.task") else value
        if known is not None:
            yield key, known


def _text_language(results: Mapping[str, Any]) -> str:
    """The language of the text by the configuration, for a run whose version did not record it."""
    config = results.get("config", {})
    model = config.get("model", {})
    language = model.get("language") or config.get("data", {}).get("language") or "ja"
    return "en" if model.get("task") == "translate" else str(language)


def _todays_scoring(results: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The `scoring` of a run: as recorded, or today's if it differs and every scored clip has its transcript.

    Without transcripts, a run is compared only with runs that were scored in the same way. Raises ValueError for a
    language that is none.
    """
    keys = ("language", "normaliser", "segmenter", "languages")
    recorded = {key: results.get("scoring", {}).get(key) for key in keys}
    recorded = {key: value for key, value in recorded.items() if value is not None}
    rules = text_rules(recorded.get("language") or _text_language(results), recorded.get("languages", ()))
    if all(recorded.get(key, rules[key]) == rules[key] for key in ("normaliser", "segmenter")):
        return recorded
    scored = [(s, split, rates) for s, of in results["scores"].items() if s != "change" for split, rates in of.items()]
    try:
        complete = all(len(read_predictions(predictions_file(folder, s, d))) == r.get("clips") for d, s, r in scored)
    except DataError:
        return recorded
    return {**rules, "recorded": recorded} if complete else recorded


@lru_cache(maxsize=64)
def _rescored_rows(path: Path, language: str, several: bool) -> list[dict[str, Any]]:
    return rescored(read_predictions(path), language, several)[1]


def _run_folders(place: str) -> list[Path]:
    path = expanded(place)
    matched = (
        [path] if path.exists() else [Path(p) for p in sorted(glob(str(path), recursive=True)) if Path(p).is_dir()]
    )
    if not matched:
        raise DataError(f"{place} {'matches no folder' if set('*?[') & set(place) else 'does not exist'}; {USAGE}")
    found = [folder for match in matched for folder in _below(match)]
    if not found:
        raise DataError(f"{place} holds no run: there is no results.json in it or below it; {USAGE}")
    return found


def _below(folder: Path) -> list[Path]:
    """A run's folder itself, or else the runs below it, including trials that left no results."""
    if (folder / RESULTS).exists():
        return [folder]
    runs: set[Path] = set()
    for place, folders, files in os.walk(folder):
        path = Path(place)
        if RESULTS in (*folders, *files):
            runs.add(path)
        if SWEEP in (*folders, *files):
            runs |= _trials(path).keys()
        if len(path.relative_to(folder).parts) == DEEPEST:
            folders.clear()
    return sorted(runs, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """A sort key that puts 10-lr after 9-lr."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", str(path))]


def _trials(sweep: Path) -> dict[Path, Any]:
    """The entries of sweep.json by trial folder; empty if the file is missing or damaged."""
    try:
        return {sweep / trial["folder"]: trial for trial in read_sweep(sweep)["trials"]}
    except DataError:
        return {}


def _hydra_overrides(folder: Path) -> list[str]:
    """The overrides that Hydra recorded; results.json of older runs lacks them."""
    try:
        # This loader makes texts and nothing else; with aliases, a few of its lines may still stand for many values.
        words = yaml.load(read_text(folder / ".hydra" / "overrides.yaml", MAX_OVERRIDES), yaml.BaseLoader) or []
        check_extent(words)
        return parse(words, [str])
    except (*UNREADABLE, yaml.YAMLError):
        return []
