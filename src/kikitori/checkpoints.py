"""What a run that goes on stands on: its checkpoints, the best for its scores and the newest to go on from."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from kikitori import saving
from kikitori.module import WhisperModule
from kikitori.stopping import Stop


class SaveLast(pl.Callback):
    """Keeps last.ckpt, from which a run that was stopped goes on.

    It is written before the step after which is validated, rather than after it: a run that is stopped or killed while
    it validates takes that one step again, and then validates as if nothing had happened. So there is nothing to save
    but between two steps: then, when the run is told to stop, and after the last one.
    """

    def __init__(self, folder: Path, every_steps: int, stop: Stop) -> None:
        self.path = folder / "last.ckpt"
        self.every_steps = every_steps
        self.stop = stop
        self._saved = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # What a run goes on from need not be saved again.
        self._saved = trainer.global_step
        if trainer.is_global_zero:
            saving.sweep(self.path.parent, {self.path, *_kept(trainer)})

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        is_told = self.stop.at(step)
        if is_told or (step + 1) % self.every_steps == 0 or step + 1 == trainer.max_steps:
            self._save(trainer)
        if is_told:
            self.stop.now()

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.stop.is_told():
            self.stop.now()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # One that ended early has to find that out again.
        if trainer.global_step >= trainer.max_steps:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        if trainer.global_step > self._saved:
            # What was measured up to here is not measured again.
            for logger in trainer.loggers:
                logger.save()
            with self.stop.saving:
                trainer.save_checkpoint(self.path, weights_only=False)
            self._saved = trainer.global_step


def _kept(trainer: pl.Trainer) -> set[Path]:
    """The checkpoints that Lightning knows of: a run killed between two of its writes leaves one more."""
    paths: set[str] = set()
    for callback in trainer.checkpoint_callbacks:
        assert isinstance(callback, ModelCheckpoint)
        paths |= {*callback.best_k_models, callback.best_model_path, callback.last_model_path}
    return {Path(path) for path in paths if path}


def take_best(trainer: pl.Trainer, module: WhisperModule) -> None:
    """Put the best checkpoint's weights into the module: what is scored and saved. The test split has no say in it."""
    path = best(trainer)["best"]
    if path:
        module.load_state_dict(saving.read(Path(path))["state_dict"])


def best(trainer: pl.Trainer) -> dict[str, Any]:
    """The best checkpoint's file, what it is best by, and that value."""
    callback: Any = trainer.checkpoint_callback
    value = callback.best_model_score if callback else None
    return {
        "best": callback.best_model_path if callback else "",
        "monitor": callback.monitor if callback else None,
        "value": None if value is None else float(value),
    }


def keep_metrics(folder: Path) -> None:
    """Move the table of a run that goes on out of the way: its logger would begin it anew."""
    if (path := folder / "metrics.csv").exists():
        path.rename(folder / f"metrics-{len(list(folder.glob('metrics-*.csv')))}.csv")
