"""Hydra's plugins: the local launcher and the sweeper with Optuna.

Hydra finds this file by its place and imports it at every start. The work is therefore in
`kikitori.sweeps.launcher` and `kikitori.sweeps.optuna_sweeper`, which are imported when a sweep starts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class LocalLauncher(Launcher):
    """`hydra/launcher=local`: runs each trial in a process on this machine.

    parallel: trials at a time; None for as many as the GPUs allow, at least one. gpus_per_trial: GPUs of each trial.
    """

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
    """`hydra/sweeper=optuna`: an Optuna study chooses the values. See `kikitori.sweeps.optuna_sweeper.search`."""

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
