import json
import math
from itertools import combinations
from pathlib import Path

import pytest
from run_folders import write_grid, write_run

from kikitori.compare.label_placement import LABEL_OFFSET, LABEL_POSITIONS, place_labels
from kikitori.compare.leaderboard import leaderboards_of
from kikitori.compare.plots import Figure, figures
from kikitori.compare.search_plots import search_figures
from kikitori.runs.reader import find_runs


def plots(folder: Path) -> dict[str, Figure]:
    runs = find_runs([str(folder)])
    (table,) = leaderboards_of([run for run in runs if run.status == "completed"])
    unfinished = [run for run in runs if run.status != "completed"]
    return {figure.title: figure for figure in (*figures(table, unfinished), *search_figures(table))}


def test_a_heat_map_has_a_cell_for_each_pair_of_values_in_order(tmp_path: Path) -> None:
    write_grid(tmp_path)
    (trace,) = plots(tmp_path)["Two axes"].variants["model.d_model × optim.lr"]["data"]
    assert (trace["type"], trace["x"], trace["y"]) == ("heatmap", ["32", "64"], ["0.001", "0.002"])
    assert trace["z"][0][1] < trace["z"][0][0]


def test_a_search_is_drawn_as_points(tmp_path: Path) -> None:
    for n in range(13):
        write_run(tmp_path / f"{n}-x", config={"optim": {"lr": 10.0 ** -(n / 4), "warmup_steps": 10 * n}})
    (trace,) = plots(tmp_path)["Two axes"].variants["optim.lr × optim.warmup_steps"]["data"]
    assert trace["mode"] == "markers"
    assert len(trace["marker"]["color"]) == 13


def test_a_search_has_a_history_with_the_best_so_far(tmp_path: Path) -> None:
    (tmp_path / "study.journal").touch()
    for n, errors in enumerate((2, 3, 1)):
        write_run(tmp_path / f"{n}-x", errors, {"optim": {"lr": 10.0**-n}}, started=f"2026-11-25T10:0{n}:00")
    trials, best = plots(tmp_path)["Search history"].variants["history"]["data"]
    second, last = 100 * 6 / 37, 100 * 3 / 37
    assert trials["y"] == pytest.approx([second, 100 * 9 / 37, last])
    assert best["y"] == pytest.approx([second, second, last])


def test_a_grid_has_no_history(tmp_path: Path) -> None:
    write_grid(tmp_path)
    assert not plots(tmp_path)["Search history"].variants


def test_each_key_has_a_plot_with_a_fitting_axis(tmp_path: Path) -> None:
    for n, window in enumerate(("full", "bucketed", "full")):
        config = {"optim": {"lr": 10.0**-n}, "data": {"window": window}, "model": {"name": "base"}}
        write_run(tmp_path / f"{n}-x", n, config, model={"name": "base", "parameters": 1})
    variants = plots(tmp_path)["Each key"].variants
    assert set(variants) == {"optim.lr", "data.window"}
    assert variants["optim.lr"]["layout"]["xaxis"]["type"] == "log"
    assert variants["data.window"]["layout"]["xaxis"]["categoryarray"] == ["bucketed", "full"]
    # The model before training has no value of a key.
    assert len(variants["optim.lr"]["data"][0]["x"]) == 3


def test_all_keys_are_next_to_each_other(tmp_path: Path) -> None:
    for n in range(4):
        write_run(tmp_path / f"{n}-x", n, {"optim": {"lr": 10.0**-n, "warmup_steps": n, "schedule": "ab"[n % 2]}})
    figure = plots(tmp_path)["All keys"].variants["parallel"]
    *lines, ticks = figure["data"]
    axes = figure["layout"]["xaxis"]["ticktext"]
    assert axes[-1] == "CER"
    # From the worst to the best; the learning rate is on a logarithmic axis.
    lr, cer = ([line["y"][axes.index(name)] for line in lines] for name in ("lr", "CER"))
    assert cer == sorted(cer, reverse=True)
    assert lr == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert {"a", "b", "0.001", "1"} <= set(ticks["text"])


def test_curves_start_at_the_score_before_and_show_pruned_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    pruned = write_run(tmp_path / "b", status="pruned", error="worse than the median")
    assert pruned.exists()
    own, ended = plots(tmp_path)["Learning curves"].variants["val/cer"]["data"]
    assert own["x"] == [0, 10, 20]
    assert own["y"] == pytest.approx([100, 90, 45])
    assert ended["name"] == "b (pruned)"


def test_the_front_joins_the_rows_that_no_other_dominates(tmp_path: Path) -> None:
    for name, errors, parameters in (("small", 3, 10**6), ("large", 1, 4 * 10**6), ("wasteful", 2, 9 * 10**6)):
        model = {"name": name, "parameters": parameters}
        write_run(tmp_path / name, errors, {"optim": {"lr": parameters}}, model=model)
    _, front = plots(tmp_path)["CER against cost"].variants["parameters (M)"]["data"]
    assert front["x"] == [1.0, 4.0]


def test_rates_of_every_run_are_visible_even_above_100_percent(tmp_path: Path) -> None:
    high = [{"step": step, "val/cer": cer} for step, cer in ((10, 3.0), (20, 1.6))]
    write_run(tmp_path / "a", history=high)
    write_run(tmp_path / "b", config={"optim": {"lr": 0.1}})
    figure = plots(tmp_path)["Learning curves"]
    assert figure.variants["val/cer"]["layout"]["yaxis"]["range"] == pytest.approx([0, 110])
    write_run(tmp_path / "a", history=high, scores=without_before(tmp_path / "a"))
    figure = plots(tmp_path)["Learning curves"]
    assert figure.variants["val/cer"]["layout"]["yaxis"]["range"] == pytest.approx([0, 176])
    assert figure.caption.startswith("Rates above 176 % are cut off.")


def without_before(folder: Path) -> dict[str, object]:
    scores = json.loads((folder / "results.json").read_text())["scores"]
    return {stage: rates for stage, rates in scores.items() if stage != "before"}


def test_a_long_legend_shows_ranks_only(tmp_path: Path) -> None:
    for n in range(3):
        write_run(tmp_path / str(n), n + 1, {"optim": {"lr": n}, "model": {"name": "x" * 60}})
    write_run(tmp_path / "failed", status="failed", error="oh")
    short = plots(tmp_path)["Learning curves"].variants["val/cer"]["data"]
    assert [(line["name"], line["showlegend"]) for line in short] == [
        *((f"#{n + 1} lr={n}", True) for n in range(3)),
        ("failed (failed)", True),
    ]
    for n in range(3, 6):
        write_run(tmp_path / str(n), n + 1, {"optim": {"lr": n}, "model": {"name": "x" * 60}})
    long = plots(tmp_path)["Learning curves"].variants["val/cer"]["data"]
    assert [line["name"] for line in long if line["showlegend"]] == [f"#{n}" for n in range(1, 7)]
    assert all("lr=" in line["hovertemplate"] for line in long[:6])


def test_costs_that_are_equal_are_no_trade_off(tmp_path: Path) -> None:
    for n, seconds in enumerate((60.0, 120.0)):
        cost = {"fit_s": seconds, "evaluate_s": 1.0, "devices": 1, "device": "cpu"}
        write_run(tmp_path / str(n), n + 1, {"optim": {"lr": n}}, model={"parameters": 10**6}, cost=cost)
    assert list(plots(tmp_path)["CER against cost"].variants) == ["CPU hours"]
    write_run(tmp_path / "1", 2, {"optim": {"lr": 1}}, model={"parameters": 10**6})
    write_run(tmp_path / "0", 1, {"optim": {"lr": 0}}, model={"parameters": 10**6})
    assert not plots(tmp_path)["CER against cost"].variants


def test_labels_do_not_lie_over_each_other() -> None:
    x, y = [0.0, 0.01, 0.02, 1.0, 0.0], [0.5, 0.51, 0.5, 1.0, 0.0]
    labels = place_labels(x, y, range(5))
    places = {}
    for i, corner in labels.items():
        right, up = LABEL_POSITIONS[corner]
        places[i] = (x[i] + LABEL_OFFSET * right, y[i] + LABEL_OFFSET * up)
    assert {0, 3, 4} <= labels.keys()
    assert all(math.dist(a, b) > LABEL_OFFSET for a, b in combinations(places.values(), 2))
    assert len(place_labels([1.0] * 50, [1.0] * 50, range(50))) <= 4


def test_a_key_that_does_not_apply_to_a_row_is_no_axis_for_it(tmp_path: Path) -> None:
    write_grid(tmp_path)
    config = {"model": {"d_model": 7}, "optim": None, "checkpoint": "outputs/base"}
    write_run(tmp_path / "scored", 1, config, ["checkpoint=outputs/base"], command="evaluate")
    variants = plots(tmp_path)["Two axes"].variants
    assert list(variants) == ["model.d_model × optim.lr"]
    assert variants["model.d_model × optim.lr"]["data"][0]["x"] == ["32", "64"]


def test_values_of_a_short_search_are_points_not_categories(tmp_path: Path) -> None:
    for n in range(6):
        config = {"optim": {"lr": 10.0 ** -(n / 4)}, "data": {"language": "ja", "global_batch_size": 8 * (1 + n % 2)}}
        write_run(tmp_path / f"{n}-x", config=config)
    (trace,) = plots(tmp_path)["Two axes"].variants["optim.lr × data.global_batch_size"]["data"]
    assert trace["mode"] == "markers"


def test_a_figure_without_a_plot_gives_the_reason(tmp_path: Path) -> None:
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
