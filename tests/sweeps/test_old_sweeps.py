"""Sweeps that were started before a key was renamed are resumed: their trials, folders and studies."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, distribution_to_json
from optuna.samplers import GridSampler, RandomSampler
from optuna.trial import TrialState

from kikitori.runs.resume import expand_resume_sweep
from kikitori.runtime.errors import DataError, SweepError
from kikitori.sweeps.optuna_study import Journal, make_sampler, open_study
from kikitori.sweeps.optuna_sweeper import Search
from kikitori.sweeps.trials import Sweep, Trial, open_sweep

OLD_NAME, NEW_NAME = "0-data.global_batch-8", "0-data.global_batch_size-8"
OLD_TRIAL = {
    "number": 0,
    "folder": OLD_NAME,
    "overrides": ["experiment=article", "data.global_batch=8"],
    "swept": {"data.global_batch": "8"},
    "state": "completed",
    "log": f"{OLD_NAME}/output.log",
}
COMMAND = ["kikitori", "train", "-m", "experiment=article", "data.global_batch=8,16", "sweep.resume=null"]


def old_sweep(place: Path, **changes: Any) -> Path:
    (place / OLD_NAME).mkdir(parents=True)
    (place / OLD_NAME / "output.log").write_text("done")
    facts = {"id": "a", "command": COMMAND, "started": "then", "trials": [{**OLD_TRIAL, **changes}]}
    (place / "sweep.json").write_text(json.dumps(facts))
    return place


def trial_now() -> Trial:
    overrides = ["experiment=tutorial_100_clips", "data.global_batch_size=8"]
    return Trial(0, NEW_NAME, overrides, {"data.global_batch_size": "8"})


def test_a_trial_keeps_its_state_and_its_folder_gets_the_new_name(tmp_path: Path) -> None:
    sweep = open_sweep(old_sweep(tmp_path), [], str(tmp_path))
    assert sweep.trials[0].label == "data.global_batch_size=8"
    known = sweep.add(trial_now())
    assert (known.state, known.folder, known.log) == ("completed", NEW_NAME, f"{NEW_NAME}/output.log")
    assert (tmp_path / NEW_NAME / "output.log").read_text() == "done"
    assert not (tmp_path / OLD_NAME).exists()


def test_another_value_of_a_renamed_key_is_still_another_trial(tmp_path: Path) -> None:
    sweep = open_sweep(old_sweep(tmp_path, overrides=["data.global_batch=16"]), [], str(tmp_path))
    with pytest.raises(SweepError, match=r"trial 0 was started with data\.global_batch_size=16; this command gives "):
        sweep.add(trial_now())


@pytest.mark.parametrize("folder", ["../outside", "..", ".", "/etc", "a/b", ""])
def test_a_trial_has_a_folder_in_its_sweep(tmp_path: Path, folder: str) -> None:
    with pytest.raises(DataError, match=r"trials\[0\]\.folder is"):
        open_sweep(old_sweep(tmp_path / "sweep", folder=folder), [], "sweep")


def test_a_folder_with_the_new_name_is_not_replaced(tmp_path: Path) -> None:
    sweep = open_sweep(old_sweep(tmp_path), [], str(tmp_path))
    (tmp_path / NEW_NAME).mkdir()
    assert sweep.add(trial_now()).folder == NEW_NAME
    assert (tmp_path / OLD_NAME / "output.log").exists()


@pytest.mark.parametrize("damage", [{"swept": ["a"]}, {"overrides": [1]}, {"swept": None}])
def test_a_damaged_trial_is_reported(tmp_path: Path, damage: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"sweep\.json cannot be read"):
        open_sweep(old_sweep(tmp_path, **damage), [], str(tmp_path))


def test_the_recorded_command_is_translated(tmp_path: Path) -> None:
    given = ["-m", f"resume_sweep={old_sweep(tmp_path)}"]
    words = expand_resume_sweep("train", given)
    assert {"experiment=tutorial_100_clips", "data.global_batch_size=8,16"} <= set(words)
    assert not [word for word in words if word.startswith("sweep.resume")]


SPACE = {"data.global_batch_size": CategoricalDistribution(["8", "16"])}
OLD_SPACE = {"data.global_batch": SPACE["data.global_batch_size"]}


def plugin(folder: Path, sampler: Any) -> Any:
    config = OmegaConf.create({"hydra": {"sweeper": {"pruner": None}}})
    study = {"study": str(folder / "study.journal"), "study_name": "kikitori"}
    return SimpleNamespace(**study, sampler=sampler, config=config, pruner=None, n_trials=2)


def old_study(folder: Path, space: Mapping[str, BaseDistribution] = OLD_SPACE) -> optuna.Study:
    """A study as it was written before the keys were renamed."""
    study = optuna.create_study(storage=Journal(folder / "study.journal"), study_name="kikitori")
    described = {key: json.loads(distribution_to_json(values)) for key, values in space.items()}
    study.set_user_attr("space", described)
    return study


@pytest.mark.parametrize("sampler", [RandomSampler, GridSampler])
def test_a_study_is_continued_with_its_own_name_of_a_key(tmp_path: Path, sampler: Any) -> None:
    searching = plugin(tmp_path, partial(sampler, seed=0))
    study = old_study(tmp_path)
    study.sampler = make_sampler(searching.sampler, OLD_SPACE, 0)
    first = study.ask(OLD_SPACE)
    first.set_user_attr("sweep", "another")
    first.set_user_attr("number", 0)
    study.tell(first, 1.0)

    study = open_study(searching, SPACE, tmp_path)
    composed: list[list[str]] = []

    def compose(number: int, overrides: list[str]) -> tuple[Trial, Any]:
        composed.append(overrides)
        return Trial(number, f"{number}", overrides, {}), None

    runner = SimpleNamespace(sweep=Sweep(tmp_path, []), compose=compose, prepare=lambda configs: None)
    list(Search(searching, runner, study, ["data=demo"], SPACE).trials())  # type: ignore[arg-type]
    assert [overrides[0] for overrides in composed] == ["data=demo"]
    key, _, value = composed[0][1].partition("=")
    assert key == "data.global_batch_size"
    assert [list(trial.params) for trial in study.trials if "number" in trial.user_attrs] == [["data.global_batch"]] * 2
    if sampler is GridSampler:
        assert value != first.params["data.global_batch"]
    assert study.trials[0].state == TrialState.COMPLETE


def test_another_space_is_still_refused(tmp_path: Path) -> None:
    searching = plugin(tmp_path, partial(RandomSampler, seed=0))
    old_study(tmp_path)
    with pytest.raises(SweepError, match="has another search space"):
        open_study(searching, {"data.global_batch_size": CategoricalDistribution(["8"])}, tmp_path)


OLD_CHOICES = {"callbacks": ["best", "early_stopping"], "+experiment": ["article", "demo"], "data.batch": ["2"]}
CHOICES = {
    "callbacks": CategoricalDistribution(["best_checkpoint", "early_stopping"]),
    "+experiment": CategoricalDistribution(["tutorial_100_clips", "demo"]),
    "data.micro_batch_size": CategoricalDistribution(["2"]),
}


def idle_runner(folder: Path) -> Any:
    def compose(number: int, overrides: list[str]) -> tuple[Trial, Any]:
        return Trial(number, f"{number}", overrides, {}), None

    return SimpleNamespace(sweep=Sweep(folder, [], id="a"), compose=compose, prepare=lambda configs: None)


def test_a_study_over_a_renamed_choice_is_continued_with_its_own_values(tmp_path: Path) -> None:
    old = {key: CategoricalDistribution(choices) for key, choices in OLD_CHOICES.items()}
    searching = plugin(tmp_path, partial(GridSampler, seed=0))
    searching.n_trials = 4
    study = old_study(tmp_path, old)
    study.sampler = make_sampler(searching.sampler, old, 0)
    first = study.ask(old)
    first.set_user_attr("sweep", "a")
    first.set_user_attr("number", 0)
    study.tell(first, state=TrialState.FAIL)

    study = open_study(searching, CHOICES, tmp_path)
    trials = list(Search(searching, idle_runner(tmp_path), study, [], CHOICES).trials())
    assert {tuple(trial.overrides) for trial in trials} == {
        (f"callbacks={callbacks}", f"+experiment={experiment}", "data.micro_batch_size=2")
        for callbacks in CHOICES["callbacks"].choices
        for experiment in CHOICES["+experiment"].choices
    }
    for trial in study.trials:
        assert {key: trial.params[key] in OLD_CHOICES[key] for key in trial.params} == dict.fromkeys(OLD_CHOICES, True)


def test_a_study_over_a_choice_of_the_users_own_with_an_old_name_keeps_it(tmp_path: Path) -> None:
    space = {"experiment": CategoricalDistribution(["article", "demo"])}
    old_study(tmp_path, space)
    searching = plugin(tmp_path, partial(GridSampler, seed=0))
    study = open_study(searching, space, tmp_path)
    trials = list(Search(searching, idle_runner(tmp_path), study, [], space).trials())
    assert {trial.overrides[0] for trial in trials} == {"experiment=article", "experiment=demo"}
