"""A training step never waits for the GPU: while it computes one step, the CPU already prepares the next."""

import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from gpu_models import small_whisper
from training_runs import OPTIM, trainer, training

from kikitori.training.callbacks import ProgressReport, ThroughputMonitor, ValidateEvery
from kikitori.training.history import TrainingHistory
from kikitori.training.lightning_module import WhisperModule

STEPS = 6


class Watch(pl.Callback):
    """Makes torch warn of each wait, from the second step to the last: the first one starts libraries."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            torch.cuda.set_sync_debug_mode("warn")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def places_that_wait() -> Iterator[list[str]]:
    """The source lines, each with its callers, that wait for the GPU while `Watch` is on."""
    places: list[str] = []

    def note(message: Any, *arguments: Any, **named: Any) -> None:
        if "called a synchronizing CUDA operation" in str(message):
            frames = [frame for frame in traceback.extract_stack()[:-1] if not frame.filename.endswith("warnings.py")]
            places.append(" < ".join(f"{frame.filename}:{frame.lineno}" for frame in frames[:-6:-1]))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        yield places


@pytest.mark.parametrize(("precision", "waits"), [("32-true", 0), ("bf16-mixed", 0), ("16-mixed", STEPS - 1)])
def test_a_step_waits_only_for_the_scaler_of_fp16(
    precision: Any, waits: int, tmp_path: Path, record_property: Any
) -> None:
    """It must know whether gradients overflowed before the optimizer steps. A step that is logged waits, too."""
    whisper = small_whisper()
    callbacks = [TrainingHistory(), ThroughputMonitor(), ProgressReport(), ValidateEvery(1000), Watch()]
    settings: dict[str, Any] = {"accelerator": "gpu", "devices": 1, "log_every_n_steps": 1000, "precision": precision}
    run = trainer(tmp_path, max_steps=STEPS, callbacks=callbacks, **settings)
    batches = training(whisper, 4, STEPS)
    batches.pin_memory = True
    with places_that_wait() as places:
        run.fit(WhisperModule(whisper, OPTIM), batches)
    record_property("waits in five steps", len(places))
    assert len(places) == waits, "\n".join(places)
