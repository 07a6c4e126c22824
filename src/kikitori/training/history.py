"""What a training records: its history, stored in the checkpoint, and metrics.csv.

A step is the number of optimizer steps done, in every file and message. A run that is resumed at a step repeats the
steps after it, so the loggers drop what they had received of those.
"""

import csv
import io
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from kikitori.data.collate import Batch
from kikitori.runtime.distributed import all_gather
from kikitori.runtime.errors import Diverged, shortened
from kikitori.runtime.files import MAX_BYTES_OF_LINES, atomic_write, open_regular
from kikitori.runtime.rng import random_state, set_random_state


class TrainingHistory(pl.Callback):
    """Records one row per validation, and the clips and seconds of training, for the results.

    All of it, and the random states, are stored in the checkpoint, so a resumed run equals an uninterrupted one.
    """

    # The key of its state in a checkpoint, by which runs of earlier versions resume.
    state_key = "Recorder"

    def __init__(self, validation: str = "") -> None:
        """validation: the digest of the clips that the scores are of."""
        self.validation = validation
        self.history: list[dict[str, float]] = []
        self.train_clips = 0
        self.train_s = 0.0
        self._since = 0.0
        # Since the last validation.
        self._losses: list[Any] = []
        self._lr = 0.0
        # Step, its learning rate, clips and loss of the last step, until it has been checked.
        self._unchecked: tuple[int, float, list[str], Callable[[], float]] | None = None
        # A running checksum of the clips trained on.
        self.order = ""
        self._processes: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        self._count_seconds()
        kept = {
            "history": self.history,
            "validation": self.validation,
            "train_clips": self.train_clips,
            "train_s": self.train_s,
        }
        losses = [float(loss) for loss in self._losses]
        own = {"random": random_state(), "order": self.order, "losses": losses}
        return {**kept, "processes": all_gather(own)}

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict) -> None:
        self._check_loss(trainer)
        for name, value in checkpoint["state_dict"].items():
            if not value.isfinite().all():
                raise Diverged(f"{name} is not finite after step {trainer.global_step}{self._advice(trainer)}")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self.train_clips = state_dict["history"], state_dict["train_clips"]
        self.train_s = state_dict["train_s"]
        self._processes = state_dict["processes"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # With another number of processes the random states cannot be restored, and stay as seeded.
        if len(self._processes) == trainer.world_size:
            own = self._processes[trainer.global_rank]
            set_random_state(own["random"])
            self.order = own["order"]
            self._losses = list(torch.tensor(own["losses"], device=pl_module.device))
        self._processes = []
        self._since = time.perf_counter()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        # After the step it is the next one's.
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.train_clips += clips_of_step(batch, trainer.world_size)
        self.order = sha256(f"{self.order} {batch['clips']}".encode()).hexdigest()
        # The loss of the previous step: this step's is still being computed.
        self._check_loss(trainer)
        self._losses.append(outputs["loss"].detach())
        self._unchecked = (trainer.global_step, self._lr, batch["clips"], read_later(self._losses[-1]))

    def _check_loss(self, trainer: pl.Trainer) -> None:
        """Raises Diverged if the last step's loss is not finite; otherwise the run would end as a success."""
        if self._unchecked and not math.isfinite(loss := self._unchecked[-1]()):
            step, lr, clips, _ = self._unchecked
            raise Diverged(
                f"the loss of step {step} is {loss}, at a learning rate of {lr:.3g}, on the clips "
                f"{shortened(clips)}{self._advice(trainer)}"
            )
        self._unchecked = None

    @staticmethod
    def _advice(trainer: pl.Trainer) -> str:
        lr = trainer.optimizers[0].defaults["lr"]
        return (
            f"; lower optim.lr={lr}, lengthen the warm-up, train with trainer.precision=32, or inspect these clips. "
            "The checkpoints are from before this step"
        )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check_loss(trainer)
        self._count_seconds()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
        mean = torch.stack(self._losses).mean() if self._losses else torch.tensor(0.0)
        loss = float(trainer.strategy.reduce(mean, reduce_op="mean"))
        self._losses.clear()
        if not math.isfinite(metrics["val/loss"]):
            message = f"the validation loss after step {trainer.global_step} is {metrics['val/loss']}"
            raise Diverged(message + self._advice(trainer))
        self.history.append({"step": trainer.global_step, "train/loss": loss, **metrics})
        self._since = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._count_seconds()

    def _count_seconds(self) -> None:
        """Adds the seconds up to now, so that a checkpoint between two validations includes them."""
        now = time.perf_counter()
        self.train_s, self._since = self.train_s + now - self._since, now

    def cost(self) -> dict[str, float]:
        """Training throughput of all processes in clips per second, without validation."""
        return {"train_clips_per_s": self.train_clips / max(self.train_s, 1e-9)}


def clips_of_step(batch: Batch, world_size: int) -> int:
    """The clips that all processes train on in a step; an estimate for a loader whose sampler does not count them."""
    if batch["step_clips"] is not None:
        return batch["step_clips"]
    return world_size * sum(seconds > 0 for seconds in batch["seconds"])


def read_later(value: torch.Tensor) -> Callable[[], float]:
    """Returns a function that reads a scalar of a device, waiting for it but not for work that was queued after it."""
    if value.device.type != "cuda":
        return lambda: float(value)
    copy, computed = value.to("cpu", non_blocking=True), torch.cuda.Event()
    computed.record()

    def read() -> float:
        computed.synchronize()
        return float(copy)

    return read


class MetricsFile(Logger):
    """Writes metrics.csv: a row for each logged step and a row for each validation.

    A resumed run continues the file.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self.columns = ["step"]

    @property
    def name(self) -> None:
        """None: this logger adds nothing to the folder of the Trainer's checkpoints."""

    version = name

    def log_hyperparams(self, params: Any, *arguments: Any, **more: Any) -> None:
        """Does nothing: results.json has the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        if new := sorted(row.keys() - set(self.columns)):
            rows = self._read()
            self.columns += new
            self._write(rows)
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(self._lines([row]))

    def resume_at(self, step: int) -> list[dict[str, float]]:
        """Drops the rows after `step`, and returns those up to it."""
        rows = [row for row in self._read() if row["step"] <= step]
        self._write(rows)
        return rows

    def _read(self) -> list[dict[str, float]]:
        """The rows and, in `columns`, the columns. Lines that are damaged or that a kill has cut off are left out."""
        text = ""
        if self.path.exists():
            with open_regular(self.path, MAX_BYTES_OF_LINES) as file:
                text = file.read().decode("utf-8", "replace")
        lines = text[: text.rfind("\n") + 1].splitlines()
        reader = csv.DictReader(line for line in lines if len(line) <= csv.field_size_limit())
        # An earlier version counted steps from 0 and wrote epochs.
        shift = int("epoch" in (reader.fieldnames or []))
        self.columns = [name for name in reader.fieldnames or ["step"] if name != "epoch"]
        rows = []
        for line in reader:
            with suppress(ValueError, TypeError, KeyError):
                values = {key: float(value) for key, value in line.items() if value and key in self.columns}
                rows.append({**values, "step": int(line["step"]) + shift})
        return rows

    def _write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        with atomic_write(self.path) as file:
            file.write((",".join(self.columns) + "\n" + self._lines(rows)).encode())

    def _lines(self, rows: Iterable[Mapping[str, Any]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self.columns, lineterminator="\n").writerows(rows)
        return text.getvalue()


def resume_loggers(loggers: Iterable[Any], step: int) -> None:
    """Lets the loggers drop what they received after `step`, from where training continues. In the main process."""
    rows: list[dict[str, float]] = []
    for logger in loggers:
        if isinstance(logger, MetricsFile):
            rows = logger.resume_at(step)
        elif isinstance(logger, TensorBoardLogger):
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog

            # Makes readers ignore events of earlier files from this step on.
            start = Event(step=step + 1, session_log=SessionLog(status=SessionLog.START))
            logger.experiment._get_file_writer().add_event(start)
        elif hasattr(logger, "resume_at"):
            logger.resume_at(rows)


def recorded(trainer: Any) -> list[dict[str, float]]:
    """The rows of the Trainer's TrainingHistory; none without one."""
    return next((own.history for own in trainer.callbacks if isinstance(own, TrainingHistory)), [])


def shown(metric: str, value: Any) -> str:
    """A metric as it is printed: rates in percent, others with four digits."""
    name = metric.rpartition("/")[2]
    return f"{name.upper()} {100 * float(value):.1f} %" if name in ("cer", "wer") else f"{name} {float(value):.4g}"


def best_so_far(trainer: Any, rows: Sequence[Mapping[str, float]]) -> str:
    """Whether the last row is the best one, by the score that chooses the checkpoint, or else which one is."""
    monitor = trainer.checkpoint_callback.monitor if trainer.checkpoint_callback else "val/cer"
    best = min((row for row in rows if monitor in row), key=lambda row: row[monitor])
    return "best so far" if best is rows[-1] else f"best {shown(monitor, best[monitor])} at step {best['step']}"
