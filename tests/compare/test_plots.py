from pathlib import Path

import pytest
from run_folders import write_grid, write_run

from kikitori.compare.leaderboard import data_sets
from kikitori.compare.plots import Figure, figures
from kikitori.runs.reader import find_runs


def plots(folder: Path) -> dict[str, Figure]:
    runs = find_runs([str(folder)])
    (table,) = data_sets([run for run in runs if run.status == "completed"])
    return {figure.title: figure for figure in figures(table, [run for run in runs if run.status != "completed"])}


def test_a_heat_map_has_a_cell_for_each_pair_of_values_in_order(tmp_path: Path) -> None:
    write_grid(tmp_path)
    (trace,) = plots(tmp_path)["Two axes"].variants["model.d_model × optim.lr"]["data"]
    assert (trace["type"], trace["x"], trace["y"]) == ("heatmap", ["32", "64"], ["0.001", "0.002"])
    assert trace["z"][0][1] < trace["z"][0][0]


def test_a_search_is_drawn_as_points_not_as_an_empty_grid(tmp_path: Path) -> None:
    for n in range(13):
        write_run(tmp_path / f"{n}-x", config={"optim": {"lr": 10.0 ** -(n / 4), "warmup_steps": 10 * n}})
    (trace,) = plots(tmp_path)["Two axes"].variants["optim.lr × optim.warmup_steps"]["data"]
    assert trace["mode"] == "markers"
    assert len(trace["marker"]["color"]) == 13


def test_curves_start_at_the_score_before_and_show_pruned_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    pruned = write_run(tmp_path / "b", status="pruned", error="worse than the median")
    assert pruned.exists()
    own, ended = plots(tmp_path)["Learning curves"].variants["val/cer"]["data"]
    assert own["x"] == [0, 10, 20]
    assert own["y"] == pytest.approx([100, 90, 45])
    assert ended["name"] == "b (pruned)"


def test_the_front_joins_what_none_beats_in_size_and_rate(tmp_path: Path) -> None:
    for name, errors, parameters in (("small", 3, 1e6), ("large", 1, 4e6), ("wasteful", 2, 9e6)):
        model = {"name": name, "parameters": parameters}
        write_run(tmp_path / name, errors, {"optim": {"lr": parameters}}, model=model)
    _, front = plots(tmp_path)["CER against cost"].variants["parameters (M)"]["data"]
    assert front["x"] == [1.0, 4.0]


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    write_run(tmp_path / "alone", history=[])
    found = plots(tmp_path)
    assert found["Seed spread"].caption.startswith("One seed each")
    assert found["Two axes"].caption == "Fewer than two keys were swept."
    assert found["Learning curves"].caption == "No run recorded its validations."
    assert found["Parameter importances"].caption.startswith("Too few runs")
    assert not any(found[title].variants for title in ("Seed spread", "Two axes", "Learning curves"))


def test_markup_in_a_value_is_text_on_a_plot(tmp_path: Path) -> None:
    for seed in (0, 1):
        for name in ("<b>x</b>", "y"):
            write_run(tmp_path / f"{seed}{name[0]}", config={"seed": seed, "model": {"name": name}})
    assert "<b>x" not in str(plots(tmp_path))
    assert "&lt;b&gt;x" in str(plots(tmp_path))
