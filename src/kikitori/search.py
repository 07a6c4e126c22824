"""`hydra/sweeper=optuna`: a study chooses each trial's values from what the earlier ones reached."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.samplers import GridSampler
from optuna.trial import TrialState

from kikitori.errors import ConfigError, SweepError
from kikitori.launcher import Machine
from kikitori.pruning import open_storage
from kikitori.sweep import Trial, settle

log = logging.getLogger(__name__)

STATES = {"completed": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


def search(plugin: Any, arguments: Sequence[str]) -> None:
    """Run trials until the study has `n_trials` of them, those of earlier starts and other machines included.

    Raises ConfigError where nothing is to be searched, SweepError where the study is another's or trials failed.
    """
    fixed, space = split_space(plugin, arguments)
    with Machine(plugin.launcher).open() as machine:
        study = open_study(plugin, space, machine.folder)
        searching = Search(plugin, machine, study, fixed, space)
        if hasattr(plugin.launcher, "parallel"):
            machine.run(searching.trials(), searching.tell)
        else:
            searching.run_in_batches()


class Search:
    """The dealings of a study with a sweep's folder: which trial of one is which of the other."""

    def __init__(
        self,
        plugin: Any,
        machine: Machine,
        study: optuna.Study,
        fixed: list[str],
        space: dict[str, BaseDistribution],
    ) -> None:
        self.plugin = plugin
        self.machine = machine
        self.study = study
        self.fixed = fixed
        self.space = space
        self.sweep = str(machine.folder.resolve())
        # The study's number of each trial in this folder; the latest where one was tried again.
        self.numbers = {
            t.user_attrs["number"]: t.number for t in study.trials if t.user_attrs.get("sweep") == self.sweep
        }

    def trials(self) -> Iterator[Trial]:
        """First what an earlier start left undone or failed, then new ones, one by one as the machine asks."""
        for number in sorted(self.numbers):
            known = self.study.trials[self.numbers[number]]
            if known.state == TrialState.FAIL:
                self.study.enqueue_trial(known.params)
                yield self._trial(number, self.study.ask(self.space))
            elif not known.state.is_finished():
                yield self._trial(number, optuna.Trial(self.study, known._trial_id))
        sampler = self.study.sampler
        while self.count() < self.plugin.n_trials:
            if isinstance(sampler, GridSampler) and sampler.is_exhausted(self.study):
                return
            yield self._trial(max(self.numbers, default=-1) + 1, self.study.ask(self.space))

    def count(self) -> int:
        """Trials of the study, one that was tried again counted once."""
        attributes = [trial.user_attrs for trial in self.study.trials]
        return len({(a["sweep"], a["number"]) for a in attributes if "number" in a})

    def _trial(self, number: int, chosen: optuna.Trial) -> Trial:
        chosen.set_user_attr("sweep", self.sweep)
        chosen.set_user_attr("number", number)
        self.numbers[number] = chosen.number
        overrides = [*self.fixed, *(f"{key}={value}" for key, value in chosen.params.items())]
        if self.plugin.pruner is not None:
            where = json.dumps(str(Path(self.plugin.study).resolve()), ensure_ascii=False)
            pruning = f"study:{where},name:{json.dumps(self.plugin.study_name)},trial:{chosen.number}"
            overrides.append(f"+callbacks.pruning={{_target_:kikitori.pruning.PruneByStudy,{pruning}}}")
        trial, cfg = self.machine.compose(number, overrides)
        self.machine.prepare([cfg])
        return self.machine.sweep.add(trial)

    def tell(self, trial: Trial) -> None:
        """Let the study know how a trial ended."""
        number = self.numbers[trial.number]
        if trial.state in STATES and not self.study.trials[number].state.is_finished():
            value = trial.value if trial.state == "completed" else None
            self.study.tell(number, value, STATES[trial.state])

    def run_in_batches(self) -> None:
        """Run through a launcher that takes a list and comes back when all of it is done, as Slurm's does."""
        source = self.trials()
        while batch := list(islice(source, self.plugin.batch)):
            left = [trial for trial in batch if not self.machine.is_finished(trial)]
            # A launcher counts on from a first number, and those that are tried again need not follow each other.
            for _, group in groupby(enumerate(left), lambda placed: placed[1].number - placed[0]):
                self._launch([trial for _, trial in group])
            for trial in left:
                settle(trial, self.machine.folder / trial.folder, 1)
            for trial in batch:
                self.tell(trial)
            self.machine.sweep.save()

    def _launch(self, trials: list[Trial]) -> None:
        lines = []
        for trial in trials:
            trial.state, trial.reason = "running", ""
            begun = (self.machine.folder / trial.folder / "results.json").exists()
            lines.append([*trial.overrides, *["resume=true"] * begun])
        self.machine.sweep.save()
        try:
            self.plugin.launcher.launch(lines, initial_job_idx=trials[0].number)
        except Exception as error:  # a job that Slurm lost; the folders tell how each trial went
            log.warning("the launcher reports: %s", error)


def split_space(plugin: Any, arguments: Sequence[str]) -> tuple[list[str], dict[str, BaseDistribution]]:
    """The overrides that are the same for every trial, and the distributions of those that the study chooses."""
    given = [f"{key}={value}" for key, value in plugin.params.items()]
    parser = OverridesParser.create(config_loader=plugin.hydra_context.config_loader)
    overrides = {o.get_key_element(): o for o in parser.parse_overrides([*given, *arguments])}
    fixed = [f"{key}={o.get_value_element_as_str()}" for key, o in overrides.items() if not o.is_sweep_override()]
    space = {key: distribution(o) for key, o in overrides.items() if o.is_sweep_override()}
    if not space:
        raise ConfigError(
            "hydra/sweeper=optuna has nothing to search; give a value as choice(a, b), range(1, 9), interval(0, 1) "
            "or tag(log, interval(1e-6, 1e-4))"
        )
    return fixed, space


def distribution(override: Override) -> BaseDistribution:
    """What Hydra's sweep of a value means to a study; tag(log, interval(...)) is drawn by its logarithm."""
    sweep = override.value()
    if isinstance(sweep, RangeSweep):
        start, stop, step = sweep.start or 0, sweep.stop, sweep.step
        if all(isinstance(value, int) for value in (start, stop, step)):
            # Hydra's ranges end before their stop.
            return IntDistribution(int(start), int(start + (stop - start - 1) // step * step), step=int(step))
        return FloatDistribution(float(start), float(stop) - float(step), step=float(step))
    if isinstance(sweep, IntervalSweep):
        low, high, log = sweep.start, sweep.end, "log" in sweep.tags
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(float(low), float(high), log=log)
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def open_study(plugin: Any, space: Mapping[str, BaseDistribution], folder: Path) -> optuna.Study:
    """The study of the configured file, begun where there is none. Raises SweepError where it is another search's."""
    path = Path(plugin.study)
    path.parent.mkdir(parents=True, exist_ok=True)
    described = {key: json.loads(distribution_to_json(d)) for key, d in space.items()}
    try:
        study = optuna.create_study(
            storage=open_storage(path), study_name=plugin.study_name, load_if_exists=True, direction="minimize"
        )
    except Exception as error:  # whatever a file that is no journal makes Optuna raise
        raise SweepError(f"hydra.sweeper.study={path} is no study of Optuna's ({error}); give another file") from error
    known = study.user_attrs.get("space", described)
    if known != described:
        raise SweepError(
            f"hydra.sweeper.study={path} is of another search: it has {_words(known)}, this one {_words(described)}; "
            "give the same axes, or another file"
        )
    study.set_user_attr("space", described)
    pruner: DictConfig | None = OmegaConf.select(plugin.config, "hydra.sweeper.pruner")
    study.set_user_attr("pruner", OmegaConf.to_container(pruner, resolve=True) if pruner is not None else None)
    study.sampler = make_sampler(plugin.sampler, space, len(study.trials))
    if path.resolve().parent != folder.resolve():
        # Machines that share a study must not all begin with the same draws.
        study.sampler.reseed_rng()
    return study


def make_sampler(make: Any, space: Mapping[str, BaseDistribution], earlier: int) -> optuna.samplers.BaseSampler:
    """The configured sampler. earlier: trials of the study, lest one that goes on draws the same again."""
    if make.func is GridSampler:
        open_ended = [key for key, d in space.items() if not isinstance(d, CategoricalDistribution | IntDistribution)]
        if open_ended:
            raise ConfigError(
                f"hydra/sweeper/sampler=grid needs choices or ranges of whole numbers; {open_ended[0]} is neither"
            )
        return Grid({key: _values(d) for key, d in space.items()}, seed=make.keywords.get("seed"))
    seed = make.keywords.get("seed")
    return make(seed=None if seed is None else seed + earlier)


class Grid(GridSampler):
    """Optuna's grid for a loop that asks and tells: the original stops Optuna's own, of which there is none."""

    def after_trial(self, *_: Any) -> None:
        """Whoever asks looks at `is_exhausted`."""


def _values(values: BaseDistribution) -> list[Any]:
    if isinstance(values, CategoricalDistribution):
        return list(values.choices)
    assert isinstance(values, IntDistribution)
    return list(range(values.low, values.high + 1, values.step))


def _words(space: Mapping[str, Any]) -> str:
    def one(d: Mapping[str, Any]) -> str:
        a = d["attributes"]
        return f"({', '.join(map(str, a['choices']))})" if "choices" in a else f"{a['low']} to {a['high']}"

    return ", ".join(f"{key} {one(d)}" for key, d in space.items())
