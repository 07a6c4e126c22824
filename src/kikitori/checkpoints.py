"""What a run that goes on stands on: its checkpoints, the best for its scores and the newest to go on from."""

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from kikitori.module import WhisperModule

log = logging.getLogger(__name__)


def take_best(trainer: pl.Trainer, module: WhisperModule) -> None:
    """Put the best checkpoint's weights into the module: what is scored and saved. The test split has no say in it."""
    path = best(trainer)["best"]
    if path:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        module.load_state_dict(state)


def best(trainer: pl.Trainer) -> dict[str, Any]:
    """The best checkpoint's file, what it is best by, and that value."""
    callback: Any = trainer.checkpoint_callback
    value = callback.best_model_score if callback else None
    return {
        "best": callback.best_model_path if callback else "",
        "monitor": callback.monitor if callback else None,
        "value": None if value is None else float(value),
    }


def newest(folder: Path) -> Path | None:
    """The checkpoint of the most steps that can be read; None where there is none.

    Not by time of writing, and read whole: a run that was killed while it saved leaves half a file.
    """
    steps: dict[Path, int] = {}
    for path in folder.glob("*.ckpt"):
        try:
            steps[path] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"]
        except Exception as error:  # whatever a damaged file makes torch raise
            log.warning("%s cannot be read and is passed over: %s", path, str(error).splitlines()[0])
    return max(steps, key=lambda path: steps[path], default=None)


def keep_metrics(folder: Path) -> None:
    """Move the table of a run that goes on out of the way: its logger would begin it anew."""
    if (path := folder / "metrics.csv").exists():
        path.rename(folder / f"metrics-{len(list(folder.glob('metrics-*.csv')))}.csv")
