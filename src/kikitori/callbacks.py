"""Callbacks of our own."""

import math
import time
from typing import Any

import pytorch_lightning as pl

from kikitori.errors import TrainingError


class ValidateEvery(pl.Callback):
    """Validates each n optimizer steps and after the last one.

    Lightning counts batches instead, which the end of an epoch sets apart from steps where gradients are accumulated,
    and it would train the steps after the last multiple for nothing.
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


class Recorder(pl.Callback):
    """Keeps what the results need of a fit: a row an evaluation, and the clips and seconds that training took."""

    def __init__(self) -> None:
        self.history: list[dict[str, float]] = []
        self.train_clips = 0
        self.train_s = 0.0
        self._since = 0.0
        self._losses: list[Any] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.train_clips += len(batch["clips"])
        self._losses.append(outputs["loss"].detach())

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.train_s += time.perf_counter() - self._since

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
        losses = [float(loss) for loss in self._losses]
        self._losses.clear()
        if not all(map(math.isfinite, [*losses, metrics["val/loss"]])):
            # Before a checkpoint is written of it: Lightning would end such a run as a success.
            lr = trainer.optimizers[0].defaults["lr"]
            raise TrainingError(
                f"the loss is not finite by step {trainer.global_step} (optim.lr={lr}); "
                "lower the learning rate, lengthen the warm-up, or train at trainer.precision=32"
            )
        # Lightning reports a loss divided by the accumulation; the recipe's loss is the mean over batches.
        scale = trainer.accumulate_grad_batches
        row = {"step": trainer.global_step, "train/loss": scale * sum(losses) / max(1, len(losses)), **metrics}
        self.history.append(row)
        self._since = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.train_s += time.perf_counter() - self._since
