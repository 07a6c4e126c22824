"""The curve of mixtures between a base and a tuned model: as a table, and as a page that needs no network."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import chain
from typing import Any, NamedTuple

from kikitori.guard.figures import shown_place
from kikitori.guard.measures import CER, LOOPS, MEASURES
from kikitori.guard.recordings import OWN, READINGS, STOCK

COLOURS, CHOSEN = {OWN: "#3d85c6", STOCK: "#e69138"}, "#d1495b"
# Plots beside each other, and pixels of the height of a row of them.
COLUMNS, HEIGHT = 3, 260
# What distinguishes a figure of the guard from its others.
FIGURE = ("set", "measure", "reading")


class Point(NamedTuple):
    """A value of a mixture with its 95 % interval."""

    alpha: float
    value: float
    low: float
    high: float


class Line(NamedTuple):
    """A figure of each mixture in one reading. name: a split, or a set of the guard."""

    name: str
    reading: str
    measure: str
    points: list[Point]


def curve_rows(curve: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any]) -> list[list[str]]:
    """The table, header first: a row for each line, a column for each alpha, with 95 % intervals.

    chosen: alpha and reading of the mixture that is saved, which is marked where it was chosen: on validation.
    """
    if not curve:
        return []
    table = [["", "figure", "reading", *(f"{point['alpha']:g}" for point in curve)]]
    for line in lines(curve):
        cells = [f"{point.value:.1f} [{point.low:.1f}, {point.high:.1f}]" for point in line.points]
        if (line.name, line.reading) == ("validation", chosen.get("reading")):
            saved = [point.alpha == chosen["alpha"] for point in line.points]
            cells = [f"{cell} saved" if is_saved else cell for cell, is_saved in zip(cells, saved, strict=True)]
        table.append([line.name, MEASURES[line.measure].unit, line.reading, *cells])
    return table


def curve_page(curve: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any]) -> str:
    """One plot for each figure of a split or set, with a line for each reading over alpha, and 95 % intervals."""
    # Here, because it takes most of a second, and only this page needs it.
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    panels: dict[tuple[str, str], list[Line]] = {}
    for line in lines(curve):
        panels.setdefault((line.name, line.measure), []).append(line)
    rows = -(-len(panels) // COLUMNS)
    titles = [escape(f"{name}: {MEASURES[measure].unit}") for name, measure in panels]
    figure = make_subplots(rows, COLUMNS, subplot_titles=titles)
    explained: set[str] = set()
    for line in chain.from_iterable(panels.values()):
        panel = list(panels).index((line.name, line.measure))
        alphas, values, low, high = zip(*line.points, strict=True)
        error = {"array": [h - v for h, v in zip(high, values, strict=True)], "symmetric": False}
        error |= {"arrayminus": [v - lo for lo, v in zip(low, values, strict=True)]}
        colour, is_chosen = COLOURS[line.reading], line.reading == chosen["reading"]
        colours = [CHOSEN if is_chosen and alpha == chosen["alpha"] else colour for alpha in alphas]
        style = {"line": {"color": colour}, "marker": {"color": colours, "size": 8}, "mode": "lines+markers"}
        named = {"name": line.reading, "legendgroup": line.reading, "showlegend": line.reading not in explained}
        explained.add(line.reading)
        trace = Scatter(x=alphas, y=values, error_y=error, **style, **named)
        figure.add_trace(trace, panel // COLUMNS + 1, panel % COLUMNS + 1)
    title = "From the base (alpha 0) to the tuned model (alpha 1), with 95 % intervals; in red what was saved"
    figure.update_layout(title=title, height=120 + HEIGHT * rows, template="plotly_white")
    page: str = figure.to_html(include_plotlyjs=True, full_html=True)
    return page


def lines(curve: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
    """Yields the lines: of the splits, then of the guard's sets but for repetitions, each figure's readings in turn.

    Splits have a second line only if the models read in shorter windows than the full one.
    """
    if not curve:
        return
    for split in curve[0]["scores"]:
        for reading, key in ((OWN, "scores"), (STOCK, "full_window_scores")):
            if key in curve[0]:
                yield Line(split, reading, CER, [_rate(mixture["alpha"], mixture[key][split]) for mixture in curve])
    found = {tuple(figure[key] for key in FIGURE) for figure in curve[0]["guard"] if figure["measure"] != LOOPS}
    for of in sorted(found, key=lambda of: (*shown_place(of[0]), of[1], READINGS.index(of[2]))):
        name, measure, reading = of
        same = (
            (mixture["alpha"], figure)
            for mixture in curve
            for figure in mixture["guard"]
            if tuple(figure[key] for key in FIGURE) == of
        )
        yield Line(name, reading, measure, [Point(alpha, f["value"], *f["ci95"]) for alpha, f in same])


def _rate(alpha: float, rates: Mapping[str, Any]) -> Point:
    low, high = rates["cer_ci95"]
    return Point(alpha, 100 * rates["cer"], 100 * low, 100 * high)
