"""Plots of the swept keys: two against each other, each by itself, all at once, and the history of a search."""

import math
from collections.abc import Sequence
from html import escape
from itertools import accumulate, combinations, islice
from typing import Any

from kikitori.compare.leaderboard import Leaderboard, Row, format_value, mean
from kikitori.compare.plots import (
    CER,
    FRONT,
    GREY,
    Figure,
    colour,
    figure,
    is_number,
    name,
    ordered,
    points,
    spans_decades,
)
from kikitori.runs.results import STUDY

# Axes of the parallel coordinates: more do not fit next to each other.
MAX_AXES = 8
# Values of an axis of the heat map, and pairs of keys.
MAX_VALUES = 12
MAX_PAIRS = 6


def search_figures(table: Leaderboard) -> list[Figure]:
    """All plots of this module; those without variants have nothing to show."""
    rows = [row for row in table.rows if "validation" in row.estimate]
    return [axes(rows, table.keys), history(rows), slices(rows, table.keys), parallel(rows, table.keys)]


def axes(rows: Sequence[Row], keys: Sequence[str]) -> Figure:
    """Two swept keys against each other: a heat map of a grid, coloured points of a search."""
    # A key may not apply to all rows: an evaluated checkpoint has no learning rate.
    pairs = ((a, b, [row for row in rows if a in row.choices and b in row.choices]) for a, b in combinations(keys, 2))
    varied = (pair for pair in pairs if all(len({repr(row.choices[key]) for row in pair[2]}) > 1 for key in pair[:2]))
    variants = {f"{a} × {b}": _pair(both, a, b) for a, b, both in islice(varied, MAX_PAIRS)}
    caption = "Mean validation CER % of the rows with both values, over all values of the other keys; darker is better."
    return Figure("Two axes", caption if variants else "Fewer than two keys were swept.", variants)


def _pair(rows: Sequence[Row], first: str, second: str) -> dict[str, Any]:
    cells: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        cell = (format_value(row.choices[first]), format_value(row.choices[second]))
        cells.setdefault(cell, []).append(100 * row.estimate["validation"].value)
    x, y = (ordered(rows, key) for key in (first, second))
    scale: dict[str, Any] = {"colorscale": "Viridis", "colorbar": {"title": {"text": "CER %"}, "thickness": 10}}
    # Values that a search draws hardly ever share a cell.
    is_sparse = 2 * len(cells) <= len(x) * len(y) and all(
        is_number(row.choices[k]) for row in rows for k in (first, second)
    )
    if len(x) > MAX_VALUES or len(y) > MAX_VALUES or is_sparse:
        found = [(row.choices[first], row.choices[second], 100 * row.estimate["validation"].value) for row in rows]
        a, b, z = (list(column) for column in zip(*found, strict=True))
        hover = "%{x}, %{y}: %{marker.color:.1f} %<extra></extra>"
        markers = points(a, b, "markers", marker={"size": 11, "color": z, **scale}, hovertemplate=hover)
        logs = [{"type": "log"} if spans_decades(values) else {} for values in (a, b)]
        return figure([markers], first, second, xaxis=logs[0], yaxis=logs[1])
    z = [[mean(cells.get((a, b), [])) for a in x] for b in y]
    trace: dict[str, Any] = {"type": "heatmap", "x": x, "y": y, "z": z, "xgap": 2, "ygap": 2, **scale}
    trace |= {"texttemplate": "%{z:.1f}", "hovertemplate": "%{x}, %{y}: %{z:.1f} %<extra></extra>"}
    return figure([trace], first, second, xaxis={"type": "category"}, yaxis={"type": "category"})


def history(rows: Sequence[Row]) -> Figure:
    """The validation CER of each trial in the order of their starts, and the best so far."""
    title = "Search history"
    runs = [(run, i, row) for i, row in enumerate(rows) for run in row.runs if not run.is_base]
    runs = [(run, i, row) for run, i, row in runs if (run.folder.parent / STUDY).is_file()]
    found = sorted(
        (str(run.results.get("started", "")), 100 * rate, i, row)
        for run, i, row in runs
        if (rate := run.score("validation")) is not None
    )
    if len(found) < 2:
        return Figure(title, "No trials of a search.")
    rates = [rate for _, rate, _, _ in found]
    numbers = list(range(1, len(rates) + 1))
    trials = points(
        numbers,
        rates,
        "markers",
        marker={"size": 8, "color": [colour(i) for _, _, i, _ in found]},
        customdata=[name(i, row) for _, _, i, row in found],
        hovertemplate="%{customdata}<br>trial %{x}: %{y:.1f} %<extra></extra>",
        showlegend=False,
    )
    best = points(numbers, list(accumulate(rates, min)), "lines", name="best so far", hoverinfo="skip")
    best |= {"line": {"color": FRONT, "width": 2, "shape": "hv"}}
    caption = "Completed trials in the order of their starts; pruned and failed ones have no final rate."
    return Figure(title, caption, {"history": figure([trials, best], "completed trial", CER)})


def slices(rows: Sequence[Row], keys: Sequence[str]) -> Figure:
    """The validation CER of each row against each key."""
    variants = {}
    for key in keys:
        shown = [(i, row) for i, row in enumerate(rows) if key in row.choices]
        values = [row.choices[key] for _, row in shown]
        if len({repr(value) for value in values}) < 2:
            continue
        numeric = all(map(is_number, values))
        labels = [] if numeric else ordered([row for _, row in shown], key)
        axis: dict[str, Any] = {"type": "log"} if numeric and spans_decades(values) else {}
        axis |= {} if numeric else {"type": "category", "categoryorder": "array", "categoryarray": labels}
        markers = points(
            values if numeric else list(map(format_value, values)),
            [100 * row.estimate["validation"].value for _, row in shown],
            "markers",
            marker={"size": 9, "color": [colour(i) for i, _ in shown]},
            customdata=[name(i, row) for i, row in shown],
            hovertemplate="%{customdata}<br>%{y:.1f} %<extra></extra>",
            showlegend=False,
        )
        variants[key] = figure([markers], key, "CER %", xaxis=axis)
    return Figure(
        "Each key",
        "Validation CER, one point per row, over all values of the other keys." if variants else "",
        variants,
    )


def parallel(rows: Sequence[Row], keys: Sequence[str]) -> Figure:
    """All keys next to each other, one line per row, coloured by validation CER."""
    title = "All keys"
    shown = [row for row in rows if all(key in row.choices for key in keys)]
    if not 2 < len(keys) <= MAX_AXES or len(shown) < 3:
        return Figure(title, "Fewer than three keys, or too many.")
    positions = [_axis(shown, key) for key in keys]
    rates = [100 * row.estimate["validation"].value for row in shown]
    low, high = min(rates), max(rates)
    places = [*(values for values, _ in positions), [(rate - low) / ((high - low) or 1) for rate in rates]]
    ticks = [*(labels for _, labels in positions), {0.0: f"{low:.1f} %", 1.0: f"{high:.1f} %"}]
    names = [key.rpartition(".")[2] for key in keys] + ["CER"]
    # The best rows are drawn last, over the others.
    order = sorted(range(len(shown)), key=lambda k: -rates[k])
    traces = [_line(shown[k], rates[k], [values[k] for values in places]) for k in order]
    x, y, texts = zip(*((i, at, text) for i, labels in enumerate(ticks) for at, text in labels.items()), strict=True)
    sides = ["top right" if i == 0 else "top left" if i == len(keys) else "top center" for i in x]
    traces.append(points(x, y, "markers+text", text=list(texts), textposition=sides, hoverinfo="skip"))
    traces[-1] |= {"showlegend": False, "marker": {"symbol": "line-ew-open", "size": 8, "color": GREY}}
    axis = {"tickvals": list(range(len(names))), "ticktext": names, "range": [-0.4, len(keys) + 0.4], "zeroline": False}
    drawn = figure(traces, "", "", xaxis=axis, yaxis={"visible": False, "range": [-0.1, 1.15]})
    caption = "One line per row, from its values on the left to its rate on the right; the better the darker."
    return Figure(title, caption, {"parallel": drawn})


def _line(row: Row, rate: float, y: Sequence[float]) -> dict[str, Any]:
    """The line of a row through all axes; its position on the last one gives the shade."""
    shade = f"rgba(61,133,198,{1 - 0.85 * y[-1]:.2f})"
    text = f"{escape(row.label)}: {rate:.1f} %<extra></extra>"
    line = points(range(len(y)), y, "lines", line={"color": shade, "width": 2}, hovertemplate=text)
    return line | {"showlegend": False}


def _axis(rows: Sequence[Row], key: str) -> tuple[list[float], dict[float, str]]:
    """The position of each row on an axis from 0 to 1, and the labels of the axis by position."""
    values = [row.choices[key] for row in rows]
    if not all(map(is_number, values)):
        order = ordered(rows, key)
        last = max(1, len(order) - 1)
        labels = {i / last: value for i, value in enumerate(order)}
        return [order.index(format_value(value)) / last for value in values], labels
    scaled = [math.log10(value) for value in values] if spans_decades(values) else values
    low, high = min(scaled), max(scaled)
    labels = {0.0: format_value(min(values)), 1.0: format_value(max(values))}
    return [(value - low) / ((high - low) or 1) for value in scaled], labels
