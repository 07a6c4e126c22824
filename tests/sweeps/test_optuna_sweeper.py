import json
import os
from functools import partial
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import SuccessiveHalvingPruner
from optuna.samplers import CmaEsSampler, GridSampler, RandomSampler, TPESampler
from optuna.storages.journal import JournalFileOpenLock

from kikitori.runtime.errors import ConfigError, SweepError
from kikitori.sweeps.optuna_study import (
    Journal,
    distribution,
    make_sampler,
    named_now,
    open_study,
    split_space,
)
from kikitori.sweeps.optuna_sweeper import Search
from kikitori.sweeps.trials import Sweep, Trial


def plugin(folder: Path, **changes: Any) -> Any:
    given = {"params": {}, "hydra_context": SimpleNamespace(config_loader=None), "study_name": "kikitori"}
    given |= {"study": str(folder / "study.journal"), "sampler": partial(RandomSampler, seed=3)}
    given |= {"pruner": None}
    return SimpleNamespace(**{**given, **changes})


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.lr=1e-5,3e-5", CategoricalDistribution([1e-5, 3e-5])),
        ("data.global_batch_size=choice(8, 16)", CategoricalDistribution([8, 16])),
        ("data.micro_batch_size=auto,null,4", CategoricalDistribution(["auto", "null", 4])),
        ("model=choice(whisper_tiny, micro)", CategoricalDistribution(["whisper_tiny", "micro"])),
        ("seed=range(1, 4)", IntDistribution(1, 3)),
        ("seed=range(0, 10, 4)", IntDistribution(0, 8, step=4)),
        ("optim.lr=range(0, 1, 0.3)", FloatDistribution(0.0, 0.9, step=0.3)),
        ("optim.lr=interval(0.1, 1)", FloatDistribution(0.1, 1.0)),
        ("optim.lr=tag(log, interval(1e-6, 1e-4))", FloatDistribution(1e-6, 1e-4, log=True)),
        ("seed=int(interval(1, 8))", IntDistribution(1, 8)),
    ],
)
def test_hydra_sweeps_become_optuna_distributions(override: str, expected: Any) -> None:
    assert distribution(OverridesParser.create().parse_override(override)) == expected


def test_fixed_and_searched_keys_are_split_and_the_command_line_wins(tmp_path: Path) -> None:
    searching = plugin(tmp_path, params={"optim.lr": "1e-5,3e-5", "seed": "range(0,3)"})
    fixed, space = split_space(searching, ["data=demo", "optim.lr=tag(log, interval(1e-6, 1e-4))"])
    assert fixed == ["data=demo"]
    assert space == {"optim.lr": FloatDistribution(1e-6, 1e-4, log=True), "seed": IntDistribution(0, 2)}


def test_a_search_without_a_searched_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has nothing to search; give at least one key as choice"):
        split_space(plugin(tmp_path), ["data=demo"])


SPACE = {"optim.lr": FloatDistribution(1e-6, 1e-4, log=True)}


def test_a_resumed_study_does_not_repeat_its_samples(tmp_path: Path) -> None:
    def draw() -> float:
        study = open_study(plugin(tmp_path), SPACE, tmp_path)
        trial = study.ask(SPACE)
        study.tell(trial, 1.0)
        return trial.params["optim.lr"]

    assert len({draw() for _ in range(4)}) == 4


def test_machines_that_share_a_study_start_with_different_samples(tmp_path: Path) -> None:
    studies = [open_study(plugin(tmp_path), SPACE, tmp_path / name) for name in ("a", "b")]
    assert len({study.ask(SPACE).params["optim.lr"] for study in studies}) == 2


def test_a_study_with_another_search_space_is_refused(tmp_path: Path) -> None:
    open_study(plugin(tmp_path), SPACE, tmp_path)
    other = {"optim.lr": FloatDistribution(1e-6, 1e-3, log=True), "model": CategoricalDistribution(["a", "b"])}
    spaces = "optim.lr 1e-06 to 0.0001; this command gives optim.lr 1e-06 to 0.001, model .a, b.;"
    with pytest.raises(SweepError, match=f"has another search space: {spaces}"):
        open_study(plugin(tmp_path), other, tmp_path)


@pytest.mark.parametrize("space", [None, 1, [], {"optim.lr": 1}, {"optim.lr": {"name": "x", "attributes": []}}])
def test_a_study_with_no_search_space_is_refused(tmp_path: Path, space: Any) -> None:
    open_study(plugin(tmp_path), SPACE, tmp_path).set_user_attr("space", space)
    with pytest.raises(SweepError, match=r"study\.journal is no Optuna study"):
        open_study(plugin(tmp_path), SPACE, tmp_path)


def test_a_file_that_is_no_study_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.journal").write_text("not a\njournal\n")
    with pytest.raises(SweepError, match=r"study\.journal is no Optuna study"):
        open_study(plugin(tmp_path), SPACE, tmp_path)


@pytest.mark.parametrize(
    "params",
    [
        {"data.roots": "[/mnt]"},
        {"optim.lr": "1e-5 hydra.launcher.setup=[touch x]"},
        {"optim.lr": 1e30},
        {"optim.lr": True},
        {"optim.lr": 1e-5, "+callbacks.x": "{_target_: evil.call}"},
        {"model": "${oc.create:{_target_: os.mkdir}}"},
    ],
)
def test_parameters_that_a_search_cannot_have_chosen_become_no_words(params: dict[str, Any]) -> None:
    space = {**SPACE, "model": CategoricalDistribution(["a", "b"])}
    assert named_now({"optim.lr": 2e-5, "model": "b"}, space, space) == {"optim.lr": 2e-5, "model": "b"}
    with pytest.raises(SweepError, match="which is outside of the search space"):
        named_now(params, space, space)


def test_a_grid_tries_every_combination_once(tmp_path: Path) -> None:
    space = {"model": CategoricalDistribution(["a", "b"]), "seed": IntDistribution(0, 4, step=2)}
    study = open_study(plugin(tmp_path, sampler=partial(GridSampler, seed=0)), space, tmp_path)
    drawn = []
    for _ in range(6):
        trial = study.ask(space)
        drawn.append((trial.params["model"], trial.params["seed"]))
        study.tell(trial, 1.0)
    assert sorted(drawn) == [(m, s) for m in "ab" for s in (0, 2, 4)]


@pytest.mark.parametrize("more", [{}, {"use_separable_cma": True}, {"with_margin": True}])
def test_cma_es_learns_and_goes_on_with_what_earlier_starts_learned(tmp_path: Path, more: dict[str, Any]) -> None:
    space = {"optim.lr": FloatDistribution(0, 1), "optim.weight_decay": FloatDistribution(0, 1)}
    chosen = []
    for _ in range(2):
        study = open_study(plugin(tmp_path, sampler=partial(CmaEsSampler, seed=0, **more)), space, tmp_path)
        for _ in range(50):
            trial = study.ask(space)
            chosen.append(max(abs(value - 0.8) for value in trial.params.values()))
            study.tell(trial, sum((value - 0.8) ** 2 for value in trial.params.values()))
    assert fmean(chosen[-20:]) < fmean(chosen[:20]) / 2


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("optim.lr=range(5, 5)", "optim.lr=range.5, 5."),
        ("optim.lr=tag(log, interval(0, 1e-3))", "optim.lr=tag.log, interval.0, 1e-3.."),
        ("optim.lr=interval(1, 0)", "optim.lr=interval.1, 0."),
    ],
)
def test_a_searched_key_without_values_is_named(override: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        distribution(OverridesParser.create().parse_override(override))


STARTED = "2026-01-01T00:00:00+00:00"
TRIAL = {"op_code": 4, "worker_id": "", "study_id": 0, "datetime_start": STARTED, "state": 0}
ENDED = {**TRIAL, "datetime_complete": STARTED, "state": 1}


@pytest.mark.parametrize(
    "record",
    [
        [],
        {"op_code": 99},
        {**TRIAL, "state": 4, "system_attrs": {"fixed_params": {"model": "[/mnt]"}}},
        {**TRIAL, "user_attrs": {"sweep": "a", "number": 10**9}},
        {**TRIAL, "user_attrs": {"sweep": "a", "number": "../x"}},
        {**TRIAL, "user_attrs": []},
        {**TRIAL, "distributions": {"model": "{}"}},
        {**TRIAL, "intermediate_values": {"1": "x"}},
        {**TRIAL, "system_attrs": {"constraints": "x"}},
        {**ENDED, "value": "x"},
        {**ENDED, "value": None},
        {**ENDED, "value": None, "values": [1.0, 2.0]},
    ],
)
@pytest.mark.parametrize("when", ["before", "during"])
def test_what_no_search_writes_into_a_study_ends_the_search_with_a_message(
    tmp_path: Path, record: Any, when: str
) -> None:
    journal = tmp_path / "study.journal"
    search = searching(tmp_path, "a", 9)
    trials = search.trials()
    next(trials)
    with journal.open("a") as file:
        file.write(json.dumps(record) + "\n")
    with pytest.raises(SweepError, match=r"study\.journal (is no Optuna study|has another search space)"):
        list(searching(tmp_path, "a", 9).trials() if when == "before" else trials)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("victim")])
def test_a_study_is_no_link_folder_or_pipe(tmp_path: Path, make: Any) -> None:
    journal = tmp_path / "study.journal"
    trials = searching(tmp_path, "a", 9).trials()
    next(trials)
    journal.unlink()
    make(journal)
    for search in (lambda: next(trials), lambda: searching(tmp_path, "b", 9)):
        with pytest.raises(SweepError, match=r"study\.journal is a link, a folder or a pipe"):
            search()
    assert not (tmp_path / "victim").exists()


def test_a_search_goes_on_where_one_was_killed_that_held_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    open_study(plugin(Path("sweep")), SPACE, Path("sweep"))
    monkeypatch.setattr(JournalFileOpenLock.__init__, "__defaults__", (3,))  # seconds, instead of 30
    JournalFileOpenLock("sweep/study.journal").acquire()
    open_study(plugin(Path("sweep")), SPACE, Path("sweep"))


class IdleRunner:
    """A runner that never starts its trials."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sweep = Sweep(folder, [])

    def compose(self, number: int, overrides: list[str]) -> tuple[Trial, None]:
        return Trial(number, str(number), overrides, {}), None

    def prepare(self, configs: Any) -> None:
        pass


def searching(folder: Path, sweep: str, n_trials: int, **changes: Any) -> Search:
    given, runner = plugin(folder, n_trials=n_trials, pruner=None, **changes), IdleRunner(folder / sweep)
    runner.sweep.id = sweep
    fixed, space = split_space(given, ["model=a,b,c,d"])
    return Search(given, runner, open_study(given, space, folder), fixed, space)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["日本", "a\\", "a'b\"c", "}], x={", "${oc.env:HOME}", '\\",_target_:evil.call'])
def test_a_trial_reads_the_name_of_its_study_as_it_is(tmp_path: Path, name: str) -> None:
    search = searching(tmp_path, "a", 1, study_name=name)
    search.plugin.pruner = SuccessiveHalvingPruner()
    (trial,) = search.trials()
    read = OverridesParser.create().parse_override(trial.overrides[-1]).value()
    assert str(read["name"]).replace("\\${", "${") == name
    assert read.keys() == {"_target_", "study", "name", "trial"}


def test_a_grid_starts_no_combination_twice_while_others_still_run(tmp_path: Path) -> None:
    started = list(searching(tmp_path, "a", 20, sampler=partial(GridSampler, seed=0)).trials())
    assert sorted(trial.overrides[0] for trial in started) == ["model=a", "model=b", "model=c", "model=d"]


def test_a_failed_trial_is_retried_with_its_own_values_by_its_own_sweep(tmp_path: Path) -> None:
    first = searching(tmp_path, "a", 3)
    trials = list(first.trials())
    for trial, state in zip(trials, ("completed", "failed", "completed"), strict=True):
        trial.state, trial.value = state, 0.5
        first.report_result(trial)
    again = searching(tmp_path, "a", 3)
    (retried,) = list(again.trials())
    assert (retried.number, retried.overrides) == (1, trials[1].overrides)
    assert again.count() == 3
    assert not list(searching(tmp_path, "b", 3).trials())
    assert len(list(searching(tmp_path, "b", 4).trials())) == 1


def test_a_search_tries_no_values_twice(tmp_path: Path) -> None:
    search = searching(tmp_path, "a", 30)
    tried = []
    for trial in search.trials():
        tried.append(trial.overrides[0])
        trial.state, trial.value = "completed", 0.5
        search.report_result(trial)
    assert sorted(tried) == ["model=a", "model=b", "model=c", "model=d"]


def test_a_search_leaves_the_configurations_that_fail(tmp_path: Path) -> None:
    """Training diverges with `model=c` and `d`. As failures, which Optuna ignores, they were chosen again and again."""
    search = searching(tmp_path, "a", 30, sampler=partial(TPESampler, seed=0, n_startup_trials=4))
    chosen = []
    for trial in search.trials():
        chosen.append(trial.overrides[0].removeprefix("model="))
        diverges = chosen[-1] in "cd"
        trial.state, trial.is_repeatable = "failed" if diverges else "completed", diverges
        trial.value = None if diverges else 0.5
        search.report_result(trial)
    assert sum(value in "cd" for value in chosen[10:]) <= 5
    assert not list(searching(tmp_path, "a", 30).trials())


def test_a_trial_without_a_score_has_failed(tmp_path: Path) -> None:
    search = searching(tmp_path, "a", 1)
    (trial,) = search.trials()
    trial.state = "completed"
    search.report_result(trial)
    assert (trial.state, trial.reason) == ("failed", "it has no validation CER, which the search minimises")


def test_a_grid_over_an_interval_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"grid needs choices or ranges of integers; optim\.lr is neither"):
        make_sampler(partial(GridSampler, seed=0), SPACE, 0)


def test_the_pruner_is_stored_in_the_study_for_the_trials(tmp_path: Path) -> None:
    node = {"_target_": "optuna.pruners.SuccessiveHalvingPruner", "min_resource": 5}
    config = OmegaConf.create({"hydra": {"sweeper": {"pruner": node}}})
    open_study(plugin(tmp_path, config=config, pruner=SuccessiveHalvingPruner()), SPACE, tmp_path)
    study = optuna.load_study(study_name="kikitori", storage=Journal(tmp_path / "study.journal"))
    assert study.user_attrs["pruner"] == node
    assert json.loads(json.dumps(study.user_attrs["space"])).keys() == {"optim.lr"}
