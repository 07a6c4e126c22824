"""The vocabulary of run folders: file names, statuses, stages, and the score that ranks a run."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kikitori.runtime.errors import DataError
from kikitori.runtime.files import read_json

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
FULL_WINDOW = "after_in_full_window"


def command_line(results: Mapping[str, Any]) -> str:
    """The command line of a run, with which it can be started again."""
    words = [*results.get("options", []), *results.get("overrides", [])]
    return shlex.join(["kikitori", results["command"], *words])


def predictions_file(folder: Path, split: str, stage: str) -> Path:
    """The file of a split's transcripts at a stage: before, after, evaluated or FULL_WINDOW."""
    return folder / "predictions" / f"{split}_{stage}.jsonl"


def ended_before_scoring(folder: Path) -> bool:
    """Whether the run in a folder failed before it had scores or a checkpoint, so that another run may replace it."""
    try:
        results = read_json(folder / RESULTS)
    except DataError:
        return False
    has_checkpoint = any((folder / "checkpoints").glob("*.ckpt"))
    return results.get("status") == "failed" and not results.get("scores") and not has_checkpoint


def scored_precision(checkpoint: Path, accelerator: str) -> str | None:
    """The precision in which the run of a checkpoint scored it on such an accelerator; None if that is unknown.

    checkpoint: the run's folder, its model's folder, or one of its .ckpt files.
    """
    place = checkpoint.expanduser().resolve()
    folder = next((folder for folder in (place, *place.parents[:2]) if (folder / RESULTS).is_file()), None)
    try:
        results = read_json(folder / RESULTS) if folder else {}
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
