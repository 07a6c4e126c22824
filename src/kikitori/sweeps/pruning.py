"""Gives up a hopeless trial of a search: a callback that tells the study each validation CER and asks it."""

from pathlib import Path
from typing import Any

import optuna
import pytorch_lightning as pl

from kikitori.config.targets import instantiate
from kikitori.runtime.errors import Pruned
from kikitori.sweeps.optuna_study import open_storage


class OptunaPruning(pl.Callback):
    """Reports val/cer at each validation, and ends the trial where the study's pruner says so.

    study: the study's file. name: the study's in that file. trial: the number of this trial in it.
    """

    def __init__(self, study: str, name: str, trial: int) -> None:
        self.path = Path(study)
        self.name = name
        self.number = trial
        self._trial: optuna.Trial | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # One process asks, all obey.
        hopeless = trainer.is_global_zero and self._is_hopeless(trainer)
        if trainer.strategy.broadcast(hopeless):
            cer = 100 * float(trainer.callback_metrics["val/cer"])
            raise Pruned(f"given up at step {trainer.global_step} with a validation CER of {cer:.1f} %")

    def _is_hopeless(self, trainer: pl.Trainer) -> bool:
        if self._trial is None:
            study = optuna.load_study(study_name=self.name, storage=open_storage(self.path))
            study.pruner = instantiate(study.user_attrs["pruner"])
            self._trial = optuna.Trial(study, study.trials[self.number]._trial_id)
        step, cer = trainer.global_step, float(trainer.callback_metrics["val/cer"])
        known: Any = self._trial.study.trials[self.number].intermediate_values
        if step not in known:  # as it is where a trial goes on from an earlier checkpoint
            self._trial.report(cer, step)
        return step < trainer.max_steps and self._trial.should_prune()
