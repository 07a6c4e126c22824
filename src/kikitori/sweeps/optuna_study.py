"""Builds an Optuna study from Hydra's configuration: search space, journal file, sampler and pruner."""

import json
import math
import pickle
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from omegaconf import OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.exceptions import OptunaError
from optuna.samplers import CmaEsSampler, GridSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from kikitori.config.names import translate
from kikitori.runtime.errors import ConfigError, SweepError, one_line
from kikitori.runtime.files import is_regular, parse

# Trials of a study, of which each has a folder with its number.
MAX_TRIALS = 10**6


class Journal(JournalStorage):
    """A study's file. It is only appended to, so several processes and machines can share it.

    Raises SweepError whenever the file holds what no search writes: it may be anyone's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with suppress(FileExistsError):
            path.open("xb").close()
        self._check_file()  # before Optuna opens it, which follows a link
        self._checked: dict[int, FrozenTrial] = {}
        # The lock is a file: Optuna's other one is a link, which leads nowhere if the path is relative.
        super().__init__(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))

    def _check_file(self) -> None:
        if not is_regular(self.path):
            raise SweepError(f"hydra.sweeper.study={self.path} is a link, a folder or a pipe, or is gone; give a file")

    def _sync_with_backend(self) -> None:
        self._check_file()
        try:
            super()._sync_with_backend()
            for number, trial in self._replay_result._trials.items():
                if self._checked.get(number) is not trial:  # it is new or was replaced
                    check_trial(trial)
                    self._checked[number] = trial
        except OptunaError:
            raise
        except Exception as error:  # Optuna raises many kinds for records that are none
            raise SweepError(
                f"hydra.sweeper.study={self.path} is no Optuna study that a search wrote ({one_line(error)}); "
                "give another file"
            ) from error


def check_trial(trial: FrozenTrial) -> None:
    """Raises ValueError for a trial that no search of ours can have written."""
    trial._validate()
    if trial.state == TrialState.WAITING:
        raise ValueError("a trial that waits")
    parse(trial.user_attrs, {"sweep": str, "number": lambda number: type(number) is int and 0 <= number < MAX_TRIALS})
    parse(trial.system_attrs, {"constraints": [float]})
    parse(trial.value, (float, None))
    parse(trial.intermediate_values, {int: float})


def split_space(plugin: Any, arguments: Sequence[str]) -> tuple[list[str], dict[str, BaseDistribution]]:
    """Splits the overrides into those that are fixed and the distributions of those that the study chooses."""
    given = [f"{key}={value}" for key, value in plugin.params.items()]
    parser = OverridesParser.create(config_loader=plugin.hydra_context.config_loader)
    overrides = {o.get_key_element(): o for o in parser.parse_overrides([*given, *arguments])}
    fixed = [f"{key}={o.get_value_element_as_str()}" for key, o in overrides.items() if not o.is_sweep_override()]
    space = {key: distribution(o) for key, o in overrides.items() if o.is_sweep_override()}
    if not space:
        raise ConfigError(
            "hydra/sweeper=optuna has nothing to search; give at least one key as choice(a, b), range(1, 9), "
            "interval(0, 1) or tag(log, interval(1e-6, 1e-4))"
        )
    return fixed, space


def distribution(override: Override) -> BaseDistribution:
    """Converts a Hydra sweep to an Optuna distribution; tag(log, interval(...)) is sampled on a log scale.

    Raises ConfigError if the sweep is empty, or holds 0 on a log scale.
    """
    sweep = override.value()
    try:
        if isinstance(sweep, RangeSweep):
            start, step = sweep.start or 0, sweep.step
            # Hydra's ranges exclude their end, Optuna's include it.
            last = start + (math.ceil((sweep.stop - start) / step - 1e-9) - 1) * step
            if all(isinstance(value, int) for value in (start, sweep.stop, step)):
                return IntDistribution(int(start), int(last), step=int(step))
            return FloatDistribution(float(start), round(float(last), 12), step=float(step))
        if isinstance(sweep, IntervalSweep):
            low, high, log = sweep.start, sweep.end, "log" in sweep.tags
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(low, high, log=log)
            return FloatDistribution(float(low), float(high), log=log)
        # Numbers stay numbers, so that Optuna's own plots have an axis; other values are written as in an override.
        texts = list(override.sweep_string_iterator())
        values = sweep.list if isinstance(sweep, ChoiceSweep) else texts
        pairs = zip(values, texts, strict=True)
        return CategoricalDistribution([value if type(value) in (int, float) else text for value, text in pairs])
    except ValueError as error:
        raise ConfigError(f"{override.input_line}: {error}") from error


def open_study(plugin: Any, space: Mapping[str, BaseDistribution], folder: Path) -> optuna.Study:
    """Opens the study of the configured file, or creates it.

    Raises SweepError if the file is no study, or a study with another search space.
    """
    path = Path(plugin.study)
    path.parent.mkdir(parents=True, exist_ok=True)
    described = {key: json.loads(distribution_to_json(d)) for key, d in space.items()}
    try:
        study = optuna.create_study(
            storage=Journal(path), study_name=plugin.study_name, load_if_exists=True, direction="minimize"
        )
        known = study.user_attrs.get("space", described)
        for values in known.values():
            json_to_distribution(json.dumps(values))
    except SweepError:
        raise
    except Exception as error:  # Optuna raises many kinds for values that are no distributions
        raise SweepError(f"hydra.sweeper.study={path} is no Optuna study ({error}); give another file") from error
    # First without, because a choice of the user's own may have a name that was one of ours.
    if _comparable(described) not in (_renamed(known), _renamed(known, with_choices=True)):
        raise SweepError(
            f"hydra.sweeper.study={path} has another search space: {_describe(known)}; this command gives "
            f"{_describe(described)}; give the same search space, or another file"
        )
    study.set_user_attr("space", known)
    if plugin.pruner is not None:
        study.set_user_attr("pruner", OmegaConf.to_container(plugin.config.hydra.sweeper.pruner, resolve=True))
        study.pruner = plugin.pruner
    study.sampler = make_sampler(plugin.sampler, named_as_in(study, space), len(study.trials))
    if path.resolve().parent != folder.resolve():
        # Machines that share a study must not all start with the same samples.
        study.sampler.reseed_rng()
    return study


def named_as_in(study: optuna.Study, space: Mapping[str, BaseDistribution]) -> dict[str, BaseDistribution]:
    """The search space with the names of a study that was started before a rename, so that its trials still count."""
    known = study.user_attrs["space"]
    earlier = {translate(key): key for key in known}
    return {earlier[key]: json_to_distribution(json.dumps(known[earlier[key]])) for key in space}


def named_now(
    params: Mapping[str, Any], earlier: Mapping[str, BaseDistribution], space: Mapping[str, BaseDistribution]
) -> dict[str, Any]:
    """The parameters of a trial of such a study with the names of the search space.

    earlier: the search space by `named_as_in`.
    Raises SweepError for a key or value that the search cannot have chosen: parameters become words of a command line.
    """

    def value_now(key: str, value: Any) -> Any:
        before, now = earlier[key], space[translate(key)]
        if isinstance(before, CategoricalDistribution) and isinstance(now, CategoricalDistribution):
            return now.choices[before.choices.index(value)]
        number = before.to_internal_repr(value)
        if not before._contains(number):
            raise ValueError(value)
        return before.to_external_repr(number)

    try:
        return {translate(key): value_now(key, value) for key, value in params.items()}
    except (KeyError, ValueError, TypeError) as error:
        raise SweepError(
            f"the study holds a trial with {dict(params)}, which is outside of the search space"
        ) from error


def make_sampler(make: Any, space: Mapping[str, BaseDistribution], earlier: int) -> optuna.samplers.BaseSampler:
    """Builds the configured sampler.

    earlier: number of trials in the study. It is added to the seed, so that a resumed search repeats no sample.
    """
    if make.func is GridSampler:
        open_ended = [key for key, d in space.items() if not isinstance(d, CategoricalDistribution | IntDistribution)]
        if open_ended:
            raise ConfigError(
                f"hydra/sweeper/sampler=grid needs choices or ranges of integers; {open_ended[0]} is neither"
                "; choose another sampler, or give it as choice(...)"
            )
        return Grid({key: values_of(d) for key, d in space.items()}, seed=make.keywords.get("seed"))
    seed = make.keywords.get("seed")
    make = partial(CmaEs, **make.keywords) if make.func is CmaEsSampler else make
    return make(seed=None if seed is None else seed + earlier)


class Grid(GridSampler):
    """Optuna's grid sampler for a loop outside `study.optimize`: the original calls `study.stop`, which fails there."""

    def after_trial(self, *_: Any) -> None:
        """Do nothing: `Search` counts the trials."""


class CmaEs(CmaEsSampler):
    """Optuna's CMA-ES with its state in this process: the original loads it from the study's file, as a pickle.

    A later start learns from the trials in the file again, one generation with each trial that it asks for.
    """

    _state: str | None = None

    def _split_optimizer_str(self, optimizer_str: str) -> dict[str, str]:
        self._state = optimizer_str
        return {}  # attributes of the trial, for the file

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        return pickle.loads(bytes.fromhex(self._state)) if self._state else None


def values_of(values: BaseDistribution) -> list[Any]:
    """All values of a choice or a range of integers."""
    if isinstance(values, CategoricalDistribution):
        return list(values.choices)
    assert isinstance(values, IntDistribution)
    return list(range(values.low, values.high + 1, values.step))


def _renamed(space: Mapping[str, Any], with_choices: bool = False) -> dict[str, Any]:
    """A described search space with the keys of this version, and its names of choices too if wanted."""
    renamed = {translate(key): json.loads(json.dumps(values)) for key, values in space.items()}
    for key, values in renamed.items() if with_choices else ():
        attributes = values["attributes"]
        if "choices" in attributes:
            attributes["choices"] = [translate(f"{key}={choice}").partition("=")[2] for choice in attributes["choices"]]
    return _comparable(renamed)


def _comparable(space: Mapping[str, Any]) -> dict[str, Any]:
    """A described search space with its choices as text; earlier versions stored numbers as text."""
    copied: dict[str, Any] = json.loads(json.dumps(space))
    for attributes in (values["attributes"] for values in copied.values()):
        if "choices" in attributes:
            attributes["choices"] = [str(choice) for choice in attributes["choices"]]
    return copied


def _describe(space: Mapping[str, Any]) -> str:
    def one(d: Mapping[str, Any]) -> str:
        a = d["attributes"]
        return f"({', '.join(map(str, a['choices']))})" if "choices" in a else f"{a['low']} to {a['high']}"

    return ", ".join(f"{key} {one(d)}" for key, d in space.items())
