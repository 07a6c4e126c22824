import os
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from run_folders import write_grid, write_run

from kikitori.compare.importance import grid_importances, importances, study_importances
from kikitori.compare.leaderboard import leaderboards_of
from kikitori.runs.reader import find_runs


def grid(effect_a: float, effect_b: float) -> list[tuple[dict[str, int], float]]:
    return [({"a": a, "b": b}, effect_a * a + effect_b * b) for a in (0, 1) for b in (0, 1) for _ in range(2)]


def test_the_share_of_a_key_is_the_variance_between_its_values() -> None:
    found = grid_importances(["a", "b"], grid(effect_a=1, effect_b=3))
    # Without noise: 1 and 9 of 10 parts. By chance alone one of seven degrees of freedom.
    assert found.keys == ["b", "a"]
    assert found.shares == pytest.approx([0.9, 0.1])
    assert found.chance == pytest.approx([1 / 7, 1 / 7])


def test_too_few_runs_give_a_reason_instead_of_noise() -> None:
    assert grid_importances(["a", "b"], grid(1, 3)[:6]).how.startswith("Too few runs (6)")
    alone = [({"lr": n}, n * 0.1) for n in range(20)]
    assert grid_importances(["lr"], alone).how.startswith("Too few runs (20) per value")


def test_keys_of_a_single_evaluation_do_not_hide_those_of_the_trainings() -> None:
    runs = [*grid(effect_a=1, effect_b=3), ({"checkpoint": "x"}, 9.0)]
    assert grid_importances(["a", "b", "checkpoint"], runs) == grid_importances(["a", "b"], grid(1, 3))


def test_equal_scores_explain_nothing() -> None:
    assert "same validation CER" in grid_importances(["a", "b"], grid(0, 0)).how


def test_a_sweep_on_disk_is_a_grid(tmp_path: Path) -> None:
    write_grid(tmp_path)
    (table,) = leaderboards_of(find_runs([str(tmp_path)]))
    found = importances(table)
    assert found.keys == ["model.d_model", "optim.lr"]
    assert found.shares[1] < 0.01


def journal(path: Path, trials: int) -> Path:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(path))), sampler=optuna.samplers.RandomSampler(0)
    )
    study.optimize(lambda t: t.suggest_float("lr", 0, 1) + 0.01 * t.suggest_float("dropout", 0, 1), n_trials=trials)
    return path


def test_the_study_of_a_search_gives_its_importances(tmp_path: Path) -> None:
    journal(tmp_path / "study.journal", 25)
    write_run(tmp_path / "0-a")
    (table,) = leaderboards_of(find_runs([str(tmp_path)]))
    found = importances(table)
    assert found.keys[0] == "lr"
    assert found.shares[0] > 0.6
    assert "25 trials" in found.how


def test_a_short_or_damaged_study_gives_a_reason(tmp_path: Path) -> None:
    assert study_importances(journal(tmp_path / "short", 5)).how.startswith("Too few completed trials (5)")
    (tmp_path / "cut").write_text('{"op_code": 0, "work')
    assert "cannot be read" in study_importances(tmp_path / "cut").how
    os.truncate(journal(tmp_path / "holes", 5), 20 * 2**30)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name in ("holes", "pipe", "link"):
        assert "cannot be read" in study_importances(tmp_path / name).how
