"""Callbacks: when to validate, a trial's progress, gradient norm and throughput."""

import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from kikitori.runtime.errors import Diverged
from kikitori.runtime.files import write_json
from kikitori.training.history import clips_of_step

log = logging.getLogger(__name__)

# Why GradScaler skips a step, and what to do.
OVERFLOW = "gradients overflow in 16 bits; use trainer.precision=bf16-mixed or 32, or lower optim.lr"


class ValidateEvery(pl.Callback):
    """Validates every n optimizer steps and after the last one.

    Lightning alone would not validate after steps beyond the last multiple of n, so these would be wasted.
    """

    NEVER = 2**62

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._last = 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        due = step > self._last and (step % self.steps == 0 or step >= trainer.max_steps)
        self._last = step if due else self._last
        trainer.val_check_batch = 1 if due else self.NEVER


class Progress(pl.Callback):
    """Writes the progress of a sweep's trial to progress.json in its folder."""

    EVERY_S = 1.0

    def __init__(self, folder: Path) -> None:
        self.path = folder / "progress.json"
        self._cer: float | None = None
        self._written = -math.inf

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if time.monotonic() - self._written > self.EVERY_S:
            self._write(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._cer = float(trainer.callback_metrics["val/cer"])
        self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        self._written = time.monotonic()
        if trainer.is_global_zero and "KIKITORI_SWEEP" in os.environ:
            write_json(self.path, {"step": trainer.global_step, "max_steps": trainer.max_steps, "val/cer": self._cer})


class SkippedSteps(pl.Callback):
    """Warns about, and finally ends, a training in fp16 whose gradients overflow in every step.

    Such a step changes no weights, but it counts, and the learning rate moves on. A few at the start, and single ones
    later, are normal: each halves the scale of the loss.
    """

    WARN, END = 10, 50

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.skipped, self._taken = 0, False
        # A resumed run took some before.
        self._any_taken = trainer.global_step > 0

        def take(*arguments: Any) -> None:
            self._taken = self._any_taken = True

        # torch calls it for the steps that GradScaler does not skip.
        self._hook = trainer.optimizers[0].register_step_post_hook(take)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.skipped, self._taken = 0 if self._taken else self.skipped + 1, False
        if self.skipped == self.WARN:
            log.warning("%d steps in a row were skipped, up to step %d: %s", self.WARN, trainer.global_step, OVERFLOW)
        if self.skipped == self.END:
            raise Diverged(f"{self.END} steps in a row were skipped, up to step {trainer.global_step}: {OVERFLOW}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._hook.remove()
        if not self._any_taken and trainer.global_step:
            raise Diverged(f"all {trainer.global_step} steps were skipped, so nothing was trained: {OVERFLOW}")


class ThroughputMonitor(pl.Callback):
    """Logs, every `log_every_n_steps`, the gradient norm before clipping and the throughput since the last time.

    The throughput counts the clips of all processes, whose hours are taken to be equal, and excludes validation time.
    """

    def __init__(self) -> None:
        self._clips = 0
        self._hours = 0.0
        self._spent_s = 0.0
        self._since = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._clips, self._hours, self._spent_s = 0, 0.0, 0.0
        self._since = time.perf_counter()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        # Lightning has undone the loss scaling by now, and the module clips after this.
        if trainer.log_every_n_steps and (trainer.global_step + 1) % trainer.log_every_n_steps == 0:
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            pl_module.log("train/grad_norm", torch.nn.utils.get_total_norm(gradients))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._clips += clips_of_step(batch, trainer.world_size)
        self._hours += sum(batch["seconds"]) / 3600
        if not trainer.log_every_n_steps or trainer.global_step % trainer.log_every_n_steps:
            return
        spent_s = self._spent_s + time.perf_counter() - self._since
        pl_module.log("train/clips_per_s", self._clips / spent_s)
        pl_module.log("train/audio_hours_per_s", trainer.world_size * self._hours / spent_s)
        if pl_module.device.type == "cuda":
            pl_module.log("train/gpu_memory_gb", torch.cuda.max_memory_allocated() / 2**30)
        self.on_train_start(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._spent_s += time.perf_counter() - self._since

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.perf_counter()
