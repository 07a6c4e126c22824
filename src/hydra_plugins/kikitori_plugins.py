"""The plugins that Hydra finds: the local launcher and the sweeper that searches with Optuna.

Hydra imports this file at every start, so the implementations are in `kikitori.sweeps.launcher` and
`kikitori.sweeps.optuna_sweeper`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class LocalLauncher(Launcher):
    """`hydra/launcher=local`: one process per trial. parallel: trials at once, None for as many as the GPUs allow."""

    def __init__(self, parallel: int | None, gpus_per_trial: int) -> None:
        self.parallel = parallel
        self.gpus_per_trial = gpus_per_trial

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from kikitori.sweeps.launcher import launch

        return launch(self, job_overrides, initial_job_idx)


class OptunaSweeper(Sweeper):
    """`hydra/sweeper=optuna`: an Optuna study chooses the values, see `kikitori.sweeps.optuna_sweeper.search`."""

    def __init__(
        self,
        n_trials: int,
        sampler: Any,
        pruner: Any,
        study: str,
        study_name: str,
        batch: int,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        self.n_trials = n_trials
        self.sampler = sampler
        self.pruner = pruner
        self.study = study
        self.study_name = study_name
        self.batch = batch
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.hydra_context = hydra_context
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        from kikitori.sweeps.optuna_sweeper import search

        search(self, arguments)
