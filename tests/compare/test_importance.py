from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from run_folders import write_grid, write_run

from kikitori.compare.importance import importances, of_grid, of_search
from kikitori.compare.leaderboard import data_sets
from kikitori.runs.reader import find_runs


def grid(effect_a: float, effect_b: float) -> list[tuple[dict[str, int], float]]:
    return [({"a": a, "b": b}, effect_a * a + effect_b * b) for a in (0, 1) for b in (0, 1) for _ in range(2)]


def test_a_keys_share_is_the_variance_between_its_values() -> None:
    found = of_grid(["a", "b"], grid(effect_a=1, effect_b=3))
    # Without noise: 1 and 9 of 10 parts. By chance alone one of seven degrees of freedom.
    assert found.keys == ["b", "a"]
    assert found.shares == pytest.approx([0.9, 0.1])
    assert found.chance == pytest.approx([1 / 7, 1 / 7])


def test_too_few_runs_say_so_instead_of_showing_noise() -> None:
    assert of_grid(["a", "b"], grid(1, 3)[:6]).how.startswith("Too few runs (6)")
    alone = [({"lr": n}, n * 0.1) for n in range(20)]
    assert of_grid(["lr"], alone).how.startswith("Too few runs (20) of each value")


def test_equal_scores_explain_nothing() -> None:
    assert "same validation CER" in of_grid(["a", "b"], grid(0, 0)).how


def test_a_sweep_on_disk_is_a_grid(tmp_path: Path) -> None:
    write_grid(tmp_path)
    (table,) = data_sets(find_runs([str(tmp_path)]))
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


def test_a_search_is_asked_itself(tmp_path: Path) -> None:
    journal(tmp_path / "study.journal", 25)
    write_run(tmp_path / "0-a")
    (table,) = data_sets(find_runs([str(tmp_path)]))
    found = importances(table)
    assert found.keys[0] == "lr"
    assert found.shares[0] > 0.6
    assert "25 trials" in found.how


def test_a_short_or_damaged_search_says_so(tmp_path: Path) -> None:
    assert of_search(journal(tmp_path / "short", 5)).how.startswith("Too few completed trials (5)")
    (tmp_path / "cut").write_text('{"op_code": 0, "work')
    assert "cannot be read" in of_search(tmp_path / "cut").how
