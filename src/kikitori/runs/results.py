"""The vocabulary of a run folder: statuses, stages, and where its files lie."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Results = dict[str, Any]

# Files of a run's folder.
RESULTS = "results.json"
PROGRESS = "progress.json"
# Files of a sweep's folder, next to the folders of its trials.
SWEEP = "sweep.json"
STUDY = "study.journal"

# The stage of a model that was trained in other windows, read as stock tools read it.
FULL_WINDOW = "after_in_full_window"


def predictions_file(folder: Path, split: str, stage: str) -> Path:
    """Where a split's transcripts of a stage lie in a run's folder."""
    return folder / "predictions" / f"{split}_{stage}.jsonl"


FINISHED = ("completed", "pruned")


def best_cer(results: Mapping[str, Any]) -> float | None:
    """The least validation CER of a training so far, or that of an evaluation; None where there is none."""
    if results.get("command") == "evaluate":
        return results.get("scores", {}).get("evaluated", {}).get("validation", {}).get("cer")
    return min((row["val/cer"] for row in results.get("history", []) if "val/cer" in row), default=None)
