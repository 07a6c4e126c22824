"""The vocabulary of run folders: file names, statuses, stages, what their files hold, the score that ranks a run.

A folder may be anyone's, so each file is read in one way: as plain values of the kinds below, or not at all.
"""

import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kikitori.config.overrides import leaves
from kikitori.metrics.languages import LANGUAGES
from kikitori.references.names import is_reference
from kikitori.runtime.errors import DataError
from kikitori.runtime.files import expanded, read_json, read_lines

Results = dict[str, Any]

# Files of a run's folder.
RESULTS = "results.json"
RESULTS_TABLE = "results.md"
PROGRESS = "progress.json"
# The id of the W&B run, which a resumed run continues.
WANDB_RUN_ID = "wandb/run-id"
# Files of a sweep's folder, next to the folders of its trials: its record, and the study of a search.
SWEEP = "sweep.json"
STUDY = "study.journal"

# Statuses of runs that are not resumed.
FINISHED = ("completed", "pruned")
# The stage of a model trained in shorter windows that is scored in the full one, as stock tools read it.
IN_FULL_WINDOW = "_in_full_window"
FULL_WINDOW = f"after{IN_FULL_WINDOW}"
# Characters of a transcript that are read. Of one that repeats itself, the rest says nothing and takes long to align.
MAX_TRANSCRIPT = 2000
# Transcripts of a split that are compared clip by clip.
MAX_TRANSCRIPTS = 200_000
# Keys of a configuration, ten times those of conf/.
MAX_KEYS = 2000
# Words of a command line, and characters of each.
MAX_WORDS, MAX_WORD = 1000, 10_000


def _number(low: int, high: int, *types: type) -> Callable[[Any], bool]:
    """The kind of a number of these types in a range."""
    return lambda value: type(value) in types and low <= value <= high


# A number of things; seconds, GB or clips per second; an error rate or a change of one.
is_count = _number(0, 10**12, int)
is_amount = _number(0, 10**12, int, float)
is_rate = _number(-(10**6), 10**6, int, float)


def is_name(value: Any) -> bool:
    """Whether a value is the name of a file or folder: no path, which could lead elsewhere."""
    return is_below(value) and "/" not in value


def is_below(value: Any) -> bool:
    """Whether a value is a path that stays below its folder, of names that a file can have."""
    parts = value.split("/") if isinstance(value, str) else [""]
    return not {"", ".", ".."} & {*parts} and "\0" not in value and all(len(part.encode()) < 256 for part in parts)


def is_store(value: Any) -> bool:
    """Whether a value is the name of a file of decoded clips in the cache."""
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{24}\.arrow", value) is not None


def is_command(value: Any) -> bool:
    """Whether a value is the words of a command line."""
    return isinstance(value, list) and len(value) <= MAX_WORDS and all(map(_is_word, value))


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_WORD


def is_interval(value: Any) -> bool:
    """Whether a value is a lower and an upper bound."""
    return isinstance(value, list) and len(value) == 2 and all(map(is_rate, value))


def is_language(value: Any) -> bool:
    """Whether a value is one of Whisper's codes."""
    return isinstance(value, str) and value in LANGUAGES


# What the files hold, as kinds for `parse`; keys that are not listed are read nowhere.
RATES: dict[str, Any] = {"cer!": is_rate, **dict.fromkeys(("wer", "cer_raw", "wer_raw", "cer_reading"), is_rate)}
RATES |= {"cer_ci95": is_interval, "wer_ci95": is_interval, "clips": is_count, "cut": is_count}
# Of clips of several languages, the rates of each.
RATES |= {"languages": {is_language: {**RATES}}}
SPLIT: dict[str, Any] = {
    "clips!": is_count,
    "seconds": is_amount,
    "clips_over_window": is_count,
    "store": is_store,
    "digest": str,
}
SPLIT |= {"languages": {is_language: is_count}}
# A figure of the guard, for a model and its base.
FIGURE = {
    **dict.fromkeys(("set!", "reading!", "measure!", "verdict!"), str),
    "recordings!": is_count,
    **dict.fromkeys(("base!", "tuned!", "change!"), is_rate),
    "change_ci95!": is_interval,
    "p": is_rate,
}
STEPS = ("prepare_s", "encode_s", "fit_s", "evaluate_s", "guard_s", "train_clips_per_s", "peak_memory_gb")
VALIDATION = {"step!": is_count, "train/loss": float, "val/loss": float, "val/cer": is_rate, "val/wer": is_rate}
CONFIGURATION = {
    "model": dict.fromkeys(("name", "language", "task"), (str, None)),
    "data": {"language": (str, None), "global_batch_size": is_count, "global_batch": is_count},
    "trainer": {"max_steps": (int, None), "max_epochs": (int, None), "precision": (str, int, None)},
    "callbacks": {str: {"patience": (is_count, None)}},
    "checkpoint": (str, None),
    "against": (str, None),
}
RECORD = {
    **dict.fromkeys(("cwd", "error", "error_type", "started", "finished"), str),
    "precision": (str, int),
    "status": ("running", *FINISHED, "failed").__contains__,
    "command": ("train", "evaluate", "prepare", "guard", "average").__contains__,
    "overrides": is_command,
    "options": is_command,
    "config": CONFIGURATION,
    "scores": {is_name: {is_name: RATES}},
    "scored": {str: {str: str}},
    "scoring": {**dict.fromkeys(("language", "normaliser", "segmenter"), str), "languages": [is_language]},
    "history": [VALIDATION],
    "guard": [FIGURE],
    "long_recordings": {"segments!": ("pauses", "timestamps").__contains__, "reason!": str},
    "references": {str: str},
    "averaged": {"runs": is_count, "alpha": is_amount, "reading": str},
    "checkpoint": {"steps": is_count, "best": str, "best_step": is_count, "monitor": str, "value": float},
    "cost": {**dict.fromkeys(STEPS, is_amount), "devices": is_count, "device": str},
    "data": {
        **dict.fromkeys(("corpus", "language"), str),
        "languages": [is_language],
        "splits": {str: SPLIT},
        "rejects": {str: is_count},
    },
    "model": dict.fromkeys(("name", "window", "language", "task"), str)
    | {"parameters": is_count, "window_s": is_amount, "notes": [str]},
    "versions": {str: str},
    "git": {"commit": str, "dirty": bool},
    "interruptions": [{"reason!": str, "resumed": str, "step": is_count}],
    "extended_from": is_count,
    "disk": {str: is_count},
    "environment": {str: (str, int, bool)},
}
TRIAL = {
    "folder!": is_name,
    "log": lambda log: log == "" or is_below(log),
    "number!": is_count,
    "overrides!": is_command,
    "swept!": {str: str},
    "state": ("waiting", "running", *FINISHED, "failed").__contains__,
    "reason": str,
    "is_repeatable": bool,
    "seconds": is_amount,
    "value": (is_rate, None),
}
SWEEP_RECORD = {"trials!": [TRIAL], "command": is_command, "cwd": str, "started": str, "id": str}
PREDICTION = {
    **dict.fromkeys(("clip!", "reference!", "hypothesis!"), str),
    **dict.fromkeys(("cer_edits!", "cer_length!"), is_count),
    "language": is_language,
}
# What a model read of a recording of the guard.
GUARD_ROW = {
    **dict.fromkeys(("set!", "recording!", "reading!", "language!", "reference!", "hypothesis!"), str),
    **dict.fromkeys(("text_language", "detected"), str),
    "seconds!": is_amount,
    "stamps": [is_amount],
    "joints": [is_amount],
    "repeats": bool,
}


def read_results(folder: Path) -> Results:
    """Reads results.json of a run. Raises DataError if it is missing, damaged, or not what a run records."""
    results = read_json(folder / RESULTS, RECORD)
    if sum(1 for _ in leaves(results.get("config", {}))) > MAX_KEYS:
        raise DataError(f"{folder / RESULTS} holds a configuration of more than {MAX_KEYS} keys")
    return results


def read_sweep(folder: Path) -> dict[str, Any]:
    """Reads sweep.json of a sweep. Raises DataError if it is missing, damaged, or not what a sweep records."""
    return read_json(folder / SWEEP, SWEEP_RECORD)


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """Reads a file of transcripts, of which very long ones are cut. Raises DataError if that is impossible."""
    rows = read_lines(path, PREDICTION, MAX_TRANSCRIPTS)
    for row in rows:
        row |= {key: row[key][:MAX_TRANSCRIPT] for key in ("reference", "hypothesis")}
    return rows


def command_line(results: Mapping[str, Any]) -> str:
    """The command line of a run, with which it can be started again."""
    words = [*results.get("options", []), *results.get("overrides", [])]
    return shlex.join(["kikitori", results["command"], *words])


def predictions_file(folder: Path, split: str, stage: str) -> Path:
    """The file of a split's transcripts at a stage: before, after, evaluated or FULL_WINDOW."""
    return folder / "predictions" / f"{split}_{stage}.jsonl"


def guard_file(folder: Path, model: str) -> Path:
    """The file of what a model, base or tuned, read of the guard's recordings."""
    return folder / "predictions" / f"guard_{model}.jsonl"


def ended_before_scoring(folder: Path) -> bool:
    """Whether the run in a folder failed before it had scores or a checkpoint, so that another run may replace it."""
    try:
        results = read_results(folder)
    except DataError:
        return False
    has_checkpoint = any((folder / "checkpoints").glob("*.ckpt"))
    return results.get("status") == "failed" and not results.get("scores") and not has_checkpoint


def folder_of_run(place: Path) -> Path | None:
    """The folder of the run that a folder, its model's folder or a checkpoint belongs to; None if there is none."""
    if is_reference(str(place)):
        return None
    path = expanded(place).resolve()
    return next((folder for folder in (path, *path.parents[:2]) if (folder / RESULTS).is_file()), None)


def name_of_model(folder: Path) -> str:
    """The name of a model's folder, or of its run, which says more: it saves its model in `model` or `adapter`."""
    path = folder.resolve()
    return path.parent.name if path.name in ("model", "adapter") else path.name


def scored_precision(checkpoint: Path, accelerator: str) -> str | None:
    """The precision in which the run of a checkpoint scored it on such an accelerator; None if that is unknown.

    checkpoint: the run's folder, its model's folder, or one of its .ckpt files.
    """
    folder = folder_of_run(checkpoint)
    try:
        results = read_results(folder) if folder else {}
    except DataError:
        return None
    on_cpu = str(results.get("cost", {}).get("device", "")).startswith("cpu")
    # Earlier versions recorded the setting only.
    precision = results.get("precision") or results.get("config", {}).get("trainer", {}).get("precision")
    return str(precision) if on_cpu == (accelerator == "cpu") and precision not in (None, "auto") else None


def best_cer(results: Mapping[str, Any]) -> float | None:
    """The lowest validation CER of a training so far, or that of an evaluation; None if there is none."""
    if results.get("command") == "evaluate":
        return results.get("scores", {}).get("evaluated", {}).get("validation", {}).get("cer")
    return min((row["val/cer"] for row in results.get("history", []) if "val/cer" in row), default=None)
