"""`hydra/sweeper=optuna`: a study chooses each trial's values from what the earlier ones reached."""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import GridSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from kikitori.runtime.errors import SweepError
from kikitori.sweeps.launcher import TrialRunner
from kikitori.sweeps.optuna_study import open_study, split_space, values_of
from kikitori.sweeps.trials import Trial, update_state

log = logging.getLogger(__name__)

STATES = {"completed": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


def search(plugin: Any, arguments: Sequence[str]) -> None:
    """Run trials until the study has `n_trials` of them, those of earlier starts and other machines included.

    Raises ConfigError where nothing is to be searched, SweepError where the study is another's or trials failed.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    fixed, space = split_space(plugin, arguments)
    with TrialRunner(plugin.launcher).open() as machine:
        # An axis that does not exist is told, and the clips are decoded, before a study is begun that others may share.
        sample = optuna.create_study(sampler=RandomSampler(seed=0)).ask(space).params
        machine.prepare([machine.compose(0, with_values(fixed, sample))[1]])
        study = open_study(plugin, space, machine.folder)
        searching = Search(plugin, machine, study, fixed, space)
        if hasattr(plugin.launcher, "parallel"):
            machine.run(searching.trials(), searching.report_result)
        else:
            searching.run_in_batches()


class Search:
    """The dealings of a study with a sweep's folder: which trial of one is which of the other."""

    def __init__(
        self,
        plugin: Any,
        machine: TrialRunner,
        study: optuna.Study,
        fixed: list[str],
        space: dict[str, BaseDistribution],
    ) -> None:
        self.plugin = plugin
        self.machine = machine
        self.study = study
        self.fixed = fixed
        self.space = space
        self.sweep = machine.sweep.id
        self.n_trials = plugin.n_trials
        if isinstance(study.sampler, GridSampler):
            self.n_trials = min(self.n_trials, math.prod(len(values_of(d)) for d in space.values()))
        # The study's number of each trial in this folder; the latest where one was tried again.
        self.numbers = {
            t.user_attrs["number"]: t.number for t in study.trials if t.user_attrs.get("sweep") == self.sweep
        }

    def trials(self) -> Iterator[Trial]:
        """First what an earlier start left undone or failed, then new ones, one by one as the machine asks."""
        for number in sorted(self.numbers):
            known = self.study.trials[self.numbers[number]]
            if known.state == TrialState.FAIL:
                yield self._trial(number, self._retry(known))
            elif not known.state.is_finished():
                yield self._trial(number, known)
        if not self.numbers and self.count() >= self.n_trials:
            log.info("the study has its %d trials already", self.n_trials)
        while self.count() < self.n_trials:
            chosen = self.study.ask(self.space)
            number = max(self.numbers, default=-1) + 1
            chosen.set_user_attr("sweep", self.sweep)
            chosen.set_user_attr("number", number)
            yield self._trial(number, self.study.trials[chosen.number])

    def _retry(self, failed: FrozenTrial) -> FrozenTrial:
        """A new trial of the study with the values of one that failed; at once, so that no other machine gets it."""
        same = {"params": failed.params, "distributions": failed.distributions, "user_attrs": failed.user_attrs}
        self.study.add_trial(create_trial(state=TrialState.RUNNING, **same))
        mine = [t for t in self.study.trials if t.user_attrs == failed.user_attrs and t.state == TrialState.RUNNING]
        return mine[-1]

    def count(self) -> int:
        """Trials of the study, one that was tried again counted once."""
        attributes = [trial.user_attrs for trial in self.study.trials]
        return len({(a["sweep"], a["number"]) for a in attributes if "number" in a})

    def _trial(self, number: int, chosen: FrozenTrial) -> Trial:
        self.numbers[number] = chosen.number
        overrides = with_values(self.fixed, chosen.params)
        if self.plugin.pruner is not None:
            where = json.dumps(str(Path(self.plugin.study).resolve()), ensure_ascii=False)
            pruning = f"study:{where},name:{json.dumps(self.plugin.study_name)},trial:{chosen.number}"
            overrides.append(f"+callbacks.pruning={{_target_:kikitori.OptunaPruning,{pruning}}}")
        trial, cfg = self.machine.compose(number, overrides)
        self.machine.prepare([cfg])
        return self.machine.sweep.add(trial)

    def report_result(self, trial: Trial) -> None:
        """Let the study know how a trial ended."""
        number = self.numbers[trial.number]
        if trial.state not in STATES or self.study.trials[number].state.is_finished():
            return
        if trial.state == "completed" and trial.value is None:
            trial.state, trial.reason = "failed", "it has no validation CER to search by"
        self.study.tell(number, trial.value if trial.state == "completed" else None, STATES[trial.state])

    def run_in_batches(self) -> None:
        """Run through a launcher that takes a list and comes back when all of it is done, as Slurm's does."""
        source = self.trials()
        while batch := list(islice(source, self.plugin.batch)):
            began = time.time()
            left = [trial for trial in batch if not self.machine.is_finished(trial)]
            # A launcher counts on from a first number, and those that are tried again need not follow each other.
            for _, group in groupby(enumerate(left), lambda placed: placed[1].number - placed[0]):
                self._launch([trial for _, trial in group])
            for trial in left:
                update_state(trial, self.machine.folder / trial.folder, 1, began)
            for trial in batch:
                self.report_result(trial)
            self.machine.sweep.save()

    def _launch(self, trials: list[Trial]) -> None:
        folders = [self.machine.folder / trial.folder for trial in trials]
        lines = [[*trial.overrides, "resume=auto"] for trial in trials]
        for trial in trials:
            trial.state, trial.reason = "running", ""
        self.machine.sweep.save()
        try:
            self.plugin.launcher.launch(lines, initial_job_idx=trials[0].number)
        except Exception as error:  # whatever Slurm refuses, or a job that it lost
            if not any((folder / "results.json").exists() for folder in folders):
                raise SweepError(f"the launcher could not start a trial: {error}") from error
            log.warning("the launcher reports: %s", error)


def with_values(fixed: Sequence[str], chosen: Mapping[str, Any]) -> list[str]:
    """The overrides of a trial."""
    return [*fixed, *(f"{key}={value}" for key, value in chosen.items())]
