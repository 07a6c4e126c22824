"""Callbacks: when to validate, gradient norm and throughput, and the progress that a run reports."""

import logging
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks.early_stopping import EarlyStopping, EarlyStoppingReason
from rich.progress import TaskID

from kikitori.runtime.console import IN_BAR, LINE_EVERY_S, Pace, duration, progress_bar, shows_bars
from kikitori.runtime.errors import Diverged
from kikitori.runtime.files import write_json
from kikitori.training.history import best_so_far, clips_of_step, recorded, shown

log = logging.getLogger(__name__)

# Seconds between two updates of the training bar; each waits for the GPU, since it reads the loss.
DRAW_EVERY_S = 0.5
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


class ProgressReport(pl.Callback):
    """Reports training, validation and scoring: in a terminal by progress bars, in the log by lines.

    Training has a line after its first step, after its first `log_every_n_steps`, and then at such steps that are
    LINE_EVERY_S apart. Each validation has one, also in a terminal, so that the history stays on the screen.
    """

    def __init__(self) -> None:
        # What the Trainer predicts for, such as `scoring test before training`.
        self.title = "scoring"
        self._bars = progress_bar()
        self._training = self._task = TaskID(-1)
        self._began = self._reported = self._drawn = -math.inf
        self._scoring_s: dict[str, float] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        every = next((own.steps for own in trainer.callbacks if isinstance(own, ValidateEvery)), math.inf)
        known = [seconds for title, seconds in self._scoring_s.items() if title.startswith("scoring validation")]
        self._pace = Pace(trainer.global_step, pl_module.total_steps(), every, *known[:1])
        self._bars.start()
        total = self._pace.total if math.isfinite(self._pace.total) else None
        self._training = self._bars.add_task("training", total=total, note="")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step, now, every = trainer.global_step, time.monotonic(), trainer.log_every_n_steps or 1
        self._pace.step_done(step)
        if shows_bars() and now - self._drawn > DRAW_EVERY_S:
            self._drawn = now
            self._bars.update(self._training, completed=step, note=self._note(trainer))
        is_early = step <= self._pace.first_step + every
        if step == self._pace.first_step or (step % every == 0 and (is_early or now - self._reported >= LINE_EVERY_S)):
            self._reported = now
            log.info("%s: %s", self._step(trainer), self._line(trainer), extra={IN_BAR: True})

    def _step(self, trainer: pl.Trainer) -> str:
        return f"step {trainer.global_step}/{self._pace.total:.0f}"

    def _line(self, trainer: pl.Trainer) -> str:
        """loss 1.234, lr 9.8e-06, 12.3 clips/s, training ends in 3.2 h; without what is unknown yet."""
        metrics, left = trainer.callback_metrics, self._pace.seconds_left(trainer.global_step)
        parts = [shown("train/loss", metrics["train/loss"]), f"lr {float(metrics['train/lr']):.2g}"]
        if "train/clips_per_s" in metrics:
            parts.append(f"{float(metrics['train/clips_per_s']):.1f} clips/s")
        return ", ".join([*parts, *([f"training ends in {duration(left)}"] if left is not None else [])])

    def _note(self, trainer: pl.Trainer) -> str:
        """The end of the training bar: loss 1.234, CER 14.2 %, 3.2 h left."""
        parts = [shown("train/loss", trainer.callback_metrics["train/loss"])]
        # A run that was resumed with other validation clips has forgotten its scores.
        parts += [shown("val/cer", row["val/cer"]) for row in recorded(trainer)[-1:] if "val/cer" in row]
        left = self._pace.seconds_left(trainer.global_step)
        return ", ".join([*parts, *([f"{duration(left)} left"] if left is not None else [])])

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start("validation", trainer.num_val_batches)

    def on_validation_batch_end(self, *arguments: Any) -> None:
        self._bars.advance(self._task)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        seconds, rows = self._end(), recorded(trainer)
        self._pace.validations_s.append(seconds)
        for row in rows[-1:]:
            rates = ", ".join(shown(key, row[key]) for key in ("val/cer", "val/wer", "val/loss"))
            best = best_so_far(trainer, rows)
            log.info("%s: validation %s; %s; %s", self._step(trainer), rates, best, duration(seconds))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._bars.remove_task(self._training)
        self._bars.stop()
        if trainer.global_step < self._pace.total:
            log.info("%s: training ends here, since %s", self._step(trainer), why_stopped(trainer))

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._bars.start()
        self._start(self.title, trainer.num_predict_batches)

    def on_predict_batch_end(self, *arguments: Any) -> None:
        self._bars.advance(self._task)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._scoring_s[self.title] = self._end()
        self._bars.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._bars.stop()

    def _start(self, title: str, num_batches: Sequence[int | float]) -> None:
        self._began, self._task = time.monotonic(), self._bars.add_task(title, total=sum(num_batches))

    def _end(self) -> float:
        """Removes the bar of a validation or scoring, and returns its seconds."""
        self._bars.remove_task(self._task)
        return time.monotonic() - self._began


def why_stopped(trainer: Any) -> str:
    """The reason why training ends before its last step."""
    for callback in trainer.callbacks:
        if isinstance(callback, EarlyStopping) and callback.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED:
            return f"{callback.monitor} has not improved in {callback.wait_count} validations (early stopping)"
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
            return callback.stopping_reason_message
    return "a callback has stopped it"
