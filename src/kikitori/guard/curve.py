"""The curve of mixtures between a base and a tuned model: as a table, and as a page that needs no network."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from kikitori.guard.figures import INVENTED, MEASURES
from kikitori.guard.reader import OWN

COLOUR, CHOSEN = "#3d85c6", "#d1495b"
# Plots beside each other, and pixels of the height of a row of them.
COLUMNS, HEIGHT = 3, 260

# Of a panel: alpha, value, lower and upper bound.
Point = tuple[float, float, float, float]


def curve_rows(curve: Sequence[Mapping[str, Any]], chosen: float) -> list[list[str]]:
    """The table, header first: CER of each split with its interval, and invented characters in the model's windows."""
    splits = list(curve[0]["scores"]) if curve else []
    sets = [title for title, _, measure in panels(curve) if measure == INVENTED]
    header = [*(f"{split} CER %" for split in splits), *(f"{name}, characters/min" for name in sets)]
    table = [["alpha", *header, ""]]
    for row in curve:
        cells = [_bracketed(*_rate(row, split)) for split in splits]
        found = {figure["set"]: figure for figure in row["guard"] if _is_shown(figure)}
        cells += [f"{found[name]['value']:.1f}" for name in sets]
        table.append([f"{row['alpha']:g}", *cells, "saved" if row["alpha"] == chosen else ""])
    return table if curve else []


def curve_page(curve: Sequence[Mapping[str, Any]], chosen: float) -> str:
    """One plot for each split and each set of the guard, over alpha, with 95 % intervals."""
    # Here, because it takes most of a second, and only this page needs it.
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    found = list(panels(curve))
    rows = -(-len(found) // COLUMNS)
    titles = [escape(f"{title}: {_unit(measure)}") for title, _, measure in found]
    figure = make_subplots(rows, COLUMNS, subplot_titles=titles)
    for number, (_, points, _) in enumerate(found):
        row, column = number // COLUMNS + 1, number % COLUMNS + 1
        x, y, low, high = zip(*points, strict=True)
        error = {"array": [h - v for h, v in zip(high, y, strict=True)], "symmetric": False}
        error |= {"arrayminus": [v - lo for lo, v in zip(low, y, strict=True)]}
        colours = [CHOSEN if alpha == chosen else COLOUR for alpha in x]
        style = {"line": {"color": COLOUR}, "marker": {"color": colours, "size": 8}, "showlegend": False}
        figure.add_trace(Scatter(x=x, y=y, error_y=error, mode="lines+markers", **style), row, column)
    title = "From the base (alpha 0) to the tuned model (alpha 1), with 95 % intervals; in red what was saved"
    figure.update_layout(title=title, height=120 + HEIGHT * rows, template="plotly_white")
    page: str = figure.to_html(include_plotlyjs=True, full_html=True)
    return page


def panels(curve: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Point], str]]:
    """Yields the title, points and measure of each plot: splits, then the sets of the guard in the model's windows."""
    if not curve:
        return
    for split in curve[0]["scores"]:
        yield split, [(row["alpha"], *_rate(row, split)) for row in curve], "cer"
    for first in filter(_is_shown, curve[0]["guard"]):
        same = [
            (row["alpha"], figure)
            for row in curve
            for figure in row["guard"]
            if all(figure[key] == first[key] for key in ("set", "reading", "measure"))
        ]
        yield first["set"], [(alpha, f["value"], *f["ci95"]) for alpha, f in same], first["measure"]


def _is_shown(figure: Mapping[str, Any]) -> bool:
    return figure["reading"] == OWN and figure["measure"] in (INVENTED, "cer")


def _unit(measure: str) -> str:
    return MEASURES[measure].unit


def _rate(row: Mapping[str, Any], split: str) -> tuple[float, float, float]:
    rates = row["scores"][split]
    low, high = rates["cer_ci95"]
    return 100 * rates["cer"], 100 * low, 100 * high


def _bracketed(value: float, low: float, high: float) -> str:
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"
