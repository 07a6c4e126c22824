"""Prunes unpromising trials of a search: a callback that reports each validation CER to the Optuna study."""

from pathlib import Path
from typing import Any

import optuna
import pytorch_lightning as pl

from kikitori.config.targets import instantiate
from kikitori.runtime.errors import Pruned
from kikitori.sweeps.optuna_study import Journal


class OptunaPruning(pl.Callback):
    """Reports val/cer after each validation, and raises `Pruned` if the study's pruner decides so.

    study: path of the study's journal. name: the study's name in it. trial: number of this trial in the study.
    """

    def __init__(self, study: str, name: str, trial: int) -> None:
        self.path = Path(study)
        self.name = name
        self.number = trial
        self._trial: optuna.Trial | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The first process decides for all.
        should_prune = trainer.is_global_zero and self._should_prune(trainer)
        if trainer.strategy.broadcast(should_prune):
            cer = 100 * float(trainer.callback_metrics["val/cer"])
            raise Pruned(f"stopped by the pruner at step {trainer.global_step} with a validation CER of {cer:.1f} %")

    def _should_prune(self, trainer: pl.Trainer) -> bool:
        if self._trial is None:
            study = optuna.load_study(study_name=self.name, storage=Journal(self.path))
            study.pruner = instantiate(study.user_attrs["pruner"], "hydra.sweeper.pruner")
            self._trial = optuna.Trial(study, study.trials[self.number]._trial_id)
        step, cer = trainer.global_step, float(trainer.callback_metrics["val/cer"])
        reported: Any = self._trial.study.trials[self.number].intermediate_values
        if step not in reported:  # a trial resumed from an earlier checkpoint has reported it already
            self._trial.report(cer, step)
        return step < trainer.max_steps and self._trial.should_prune()
