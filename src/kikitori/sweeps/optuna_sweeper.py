"""`hydra/sweeper=optuna`: an Optuna study chooses each trial's values from the results of earlier trials."""

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

from kikitori.config.overrides import quote
from kikitori.runs.results import RESULTS
from kikitori.runtime.errors import SweepError
from kikitori.sweeps.launcher import TrialRunner
from kikitori.sweeps.optuna_study import named_as_in, named_now, open_study, split_space, values_of
from kikitori.sweeps.trials import Trial, update_state

log = logging.getLogger(__name__)

# Proposals in a row with values that were tried before, after which a search ends.
MAX_REPEATS = 50
STATES = {"completed": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


def search(plugin: Any, arguments: Sequence[str]) -> None:
    """Runs trials until the study has `n_trials` of them, including those of earlier starts and other machines.

    Raises ConfigError if no key is searched, SweepError if the study has another search space or trials failed.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    fixed, space = split_space(plugin, arguments)
    with TrialRunner(plugin.launcher).open(is_search=True) as runner:
        # Check the keys and decode the clips before creating a study that other machines may share.
        sample = optuna.create_study(sampler=RandomSampler(seed=0)).ask(space).params
        runner.prepare([runner.compose(0, with_values(fixed, sample))[1]])
        study = open_study(plugin, space, runner.folder)
        searching = Search(plugin, runner, study, fixed, space)
        of_other_sweeps = searching.count() - len(searching.numbers)
        runner.sweep.num_trials = max(searching.n_trials - of_other_sweeps, len(searching.numbers))
        if hasattr(plugin.launcher, "parallel"):
            runner.run(searching.trials(), searching.report_result)
        else:
            searching.run_in_batches()


class Search:
    """Maps the trials of an Optuna study to the trials in the sweep's folder."""

    def __init__(
        self,
        plugin: Any,
        runner: TrialRunner,
        study: optuna.Study,
        fixed: list[str],
        space: dict[str, BaseDistribution],
    ) -> None:
        self.plugin = plugin
        self.runner = runner
        self.study = study
        self.fixed = fixed
        self.given = space
        self.space = named_as_in(study, space)
        self.sweep = runner.sweep.id
        self.n_trials = plugin.n_trials
        if isinstance(study.sampler, GridSampler):
            self.n_trials = min(self.n_trials, math.prod(len(values_of(d)) for d in space.values()))
        # Number in the sweep's folder -> number in the study; the latest one where a trial was retried.
        own = (t for t in study.trials if t.user_attrs.get("sweep") == self.sweep)
        self.numbers = {t.user_attrs["number"]: t.number for t in own if "number" in t.user_attrs}

    def trials(self) -> Iterator[Trial]:
        """Yields the trials that an earlier start left unfinished or that the machine made fail, then new ones."""
        for number in sorted(self.numbers):
            known = self.study.trials[self.numbers[number]]
            if known.state == TrialState.FAIL:
                yield self._trial(number, self._retry(known))
            elif not known.state.is_finished():
                yield self._trial(number, known)
        if not self.numbers and self.count() >= self.n_trials:
            log.info("the study already has its %d trials; raise hydra.sweeper.n_trials to run more", self.n_trials)
        while self.count() < self.n_trials:
            chosen = self._ask()
            if chosen is None:
                log.info("no untried values were proposed in %d attempts; the search ends", MAX_REPEATS)
                return
            number = max(self.numbers, default=-1) + 1
            chosen.set_user_attr("sweep", self.sweep)
            chosen.set_user_attr("number", number)
            yield self._trial(number, self.study.trials[chosen.number])

    def _ask(self) -> optuna.Trial | None:
        """Asks the study for values that no trial has yet, since the same run would end in the same model."""
        for _ in range(MAX_REPEATS):
            chosen = self.study.ask(self.space)
            twin = next((t for t in self.study.trials[: chosen.number] if t.params == chosen.params), None)
            if twin is None:
                return chosen
            value = twin.value if twin.state == TrialState.COMPLETE else None
            self.study.tell(chosen, value, twin.state if twin.state.is_finished() else TrialState.FAIL)
        return None

    def _retry(self, failed: FrozenTrial) -> FrozenTrial:
        """Adds a trial to the study with the values of one that failed.

        It is added in the state RUNNING, so that no other machine takes it.
        """
        same = {"params": failed.params, "distributions": failed.distributions, "user_attrs": failed.user_attrs}
        self.study.add_trial(create_trial(state=TrialState.RUNNING, **same))
        mine = [t for t in self.study.trials if t.user_attrs == failed.user_attrs and t.state == TrialState.RUNNING]
        return mine[-1]

    def count(self) -> int:
        """Number of trials in the study; a retried trial counts once."""
        attributes = [trial.user_attrs for trial in self.study.trials]
        return len({(a.get("sweep"), a["number"]) for a in attributes if "number" in a})

    def _trial(self, number: int, chosen: FrozenTrial) -> Trial:
        self.numbers[number] = chosen.number
        overrides = with_values(self.fixed, named_now(chosen.params, self.space, self.given))
        if self.plugin.pruner is not None:
            path, name = quote(Path(self.plugin.study).resolve()), quote(self.plugin.study_name)
            pruning = f"study:{path},name:{name},trial:{chosen.number}"
            overrides.append(f"+callbacks.pruning={{_target_:kikitori.OptunaPruning,{pruning}}}")
        trial, cfg = self.runner.compose(number, overrides)
        self.runner.prepare([cfg])
        return self.runner.sweep.add(trial)

    def report_result(self, trial: Trial) -> None:
        """Reports the result of an ended trial to the study."""
        number = self.numbers[trial.number]
        if trial.state not in STATES or self.study.trials[number].state.is_finished():
            return
        if trial.state == "completed" and trial.value is None:
            trial.state, trial.reason = "failed", "it has no validation CER, which the search minimises"
        # Samplers ignore failed trials, so they would choose what fails again and again. A pruned trial without a value
        # counts as worse than any other.
        state = TrialState.PRUNED if trial.is_repeatable else STATES[trial.state]
        self.study.tell(number, trial.value if trial.state == "completed" else None, state)

    def run_in_batches(self) -> None:
        """Runs through a launcher that takes a list of trials and returns when all have ended, as Slurm's does."""
        source = self.trials()
        while batch := list(islice(source, self.plugin.batch)):
            began = time.time()
            left = [trial for trial in batch if not self.runner.is_finished(trial)]
            # A launcher numbers its jobs consecutively from a first number; retried trials may have gaps between them.
            for _, group in groupby(enumerate(left), lambda placed: placed[1].number - placed[0]):
                self._launch([trial for _, trial in group])
            for trial in left:
                update_state(trial, self.runner.folder / trial.folder, 1, began)
            for trial in batch:
                self.report_result(trial)
            self.runner.sweep.save()

    def _launch(self, trials: list[Trial]) -> None:
        folders = [self.runner.folder / trial.folder for trial in trials]
        lines = [[*trial.overrides, "resume=auto"] for trial in trials]
        for trial in trials:
            trial.state, trial.reason = "running", ""
        self.runner.sweep.save()
        try:
            self.plugin.launcher.launch(lines, initial_job_idx=trials[0].number)
        except Exception as error:  # submitit raises many kinds: a refused submission, a lost job
            if not any((folder / RESULTS).exists() for folder in folders):
                raise SweepError(f"the launcher could not start a trial: {error}") from error
            log.warning("the launcher raised an error after trials had started: %s", error)


def with_values(fixed: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """Returns the overrides of a trial."""
    return [*fixed, *(f"{key}={value}" for key, value in values.items())]
