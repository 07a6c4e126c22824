"""Callbacks and loggers of our own."""

import netrc
import os
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger

WANDB_HOST = "api.wandb.ai"


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
        # Lightning reports a loss divided by the accumulation; the recipe's loss is the mean over batches.
        scale = trainer.accumulate_grad_batches
        row = {"step": trainer.global_step, "train/loss": scale * sum(losses) / max(1, len(losses)), **metrics}
        self.history.append(row)
        self._since = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.train_s += time.perf_counter() - self._since


def wandb_logger(folder: str, project: str, **arguments: Any) -> WandbLogger:
    """A W&B run under the run's folder: online where there are credentials, offline and without a prompt elsewhere."""
    os.environ.setdefault("WANDB_SILENT", "true")
    mode = os.environ.get("WANDB_MODE") or ("online" if has_wandb_credentials() else "offline")
    return WandbLogger(project=project, save_dir=folder, offline=mode != "online", **arguments)


def has_wandb_credentials() -> bool:
    """Whether W&B would log in without asking: a key in the environment, or one that `wandb login` left in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", f"https://{WANDB_HOST}").split("//")[-1].split("/")[0]
    try:
        return netrc.netrc(Path("~/.netrc").expanduser()).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
