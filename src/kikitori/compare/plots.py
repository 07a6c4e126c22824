"""The page's plots as plain Plotly figures: traces and layout. Colours of text and grid are the page's own business."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import combinations
from typing import Any

from kikitori.compare.importance import importances
from kikitori.compare.leaderboard import Leaderboard, Row, format_value, mean, pareto
from kikitori.runs.reader import Run

COLOURS = ("#3d85c6", "#e08a1e", "#2a9d6e", "#c2508f", "#8b6fd6", "#b5651d", "#17a2b8", "#d1495b")
FRONT = "#d1495b"
# In turn, so that rows of one price do not write over each other.
LABEL_PLACES = ("top right", "bottom right", "top left", "bottom left")
GREY = "rgba(140,140,140,0.55)"
# Beyond it a hallucinating start would flatten all that follows.
HIGHEST_CER = 1.1
MOST_VALUES = 12
MOST_PAIRS = 6
CER = "validation CER %"


@dataclass(frozen=True)
class Figure:
    """A plot with its variants by name (one of them shown at a time), or a sentence on why there is none."""

    title: str
    caption: str
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)


def figures(table: Leaderboard, unfinished: Sequence[Run]) -> list[Figure]:
    """All plots of a table; `unfinished`: pruned and failed runs on the same data, for the curves."""
    ranked = [row for row in table.rows if "validation" in row.estimate]
    return [
        curves(ranked, unfinished),
        trade_off(ranked, table.hours_name),
        axes(ranked, table.keys),
        seeds(ranked),
        bars(table),
    ]


def colour(rank: int) -> str:
    """The first rows have one each; of more nobody tells lines apart."""
    return COLOURS[rank] if rank < len(COLOURS) else GREY


def name(rank: int, row: Row) -> str:
    """How a row is called on every plot. Plotly reads tags in text, and a value may hold one."""
    return escape(f"#{rank + 1} {row.label}")


def curves(rows: Sequence[Row], unfinished: Sequence[Run]) -> Figure:
    """Scores and losses over optimizer steps, a line a run."""
    lines = [(run, colour(i), name(i, row), i) for i, row in enumerate(rows) for run in row.runs]
    lines = [line for line in lines if line[0].results.get("history")]
    ended = [(run, GREY, f"{escape(run.name)} ({run.status})", len(rows)) for run in unfinished]
    keys = ("val/cer", "val/loss", "train/loss", "val/wer")
    variants = {}
    for key in keys if lines else ():
        traces: list[dict[str, Any]] = []
        for run, tint, label, rank in [*lines, *ended]:
            first = not any(trace["legendgroup"] == label for trace in traces)
            traces.append(_curve(run, key, tint, label) | {"showlegend": first and rank < len(COLOURS)})
        rated = key in ("val/cer", "val/wer")
        top = max((y for t in traces for y in t["y"] if y is not None), default=100 * HIGHEST_CER)
        bounds = {"range": [0, min(1.05 * top, 100 * HIGHEST_CER)]} if rated else {}
        variants[key] = _figure(traces, "optimizer step", key + " %" * rated, yaxis=bounds)
    said = (
        f"Rates are cut at {100 * HIGHEST_CER:.0f} %; pruned and failed runs are grey. Click a name to hide its lines."
    )
    return Figure("Learning curves", said if lines else "No run recorded its validations.", variants)


def _curve(run: Run, key: str, tint: str, label: str) -> dict[str, Any]:
    rate = {"val/cer": "cer", "val/wer": "wer"}.get(key)
    scale = 100 if rate else 1
    points = [(row["step"], scale * row[key]) for row in run.results.get("history", []) if key in row]
    start = run.score("validation", rate, "before") if rate else None
    if start is not None:
        points.insert(0, (0, scale * start))
    x, y = zip(*points, strict=True) if points else ((), ())
    seed = escape(str(run.results.get("config", {}).get("seed")))
    hover = f"{label}<br>seed {seed}, step %{{x}}: %{{y:.3g}}<extra></extra>"
    line = _points(x, y, "lines+markers", name=label, legendgroup=label, hovertemplate=hover)
    return line | {"line": {"color": tint, "width": 2}, "marker": {"size": 5}}


def trade_off(rows: Sequence[Row], hours_name: str) -> Figure:
    """CER against what it costs, with the Pareto front: the rows that no other beats in both."""
    variants = {}
    prices = {"parameters (M)": [_millions(row) for row in rows], hours_name: [row.hours for row in rows]}
    for axis, values in prices.items():
        known = [(x, i, row) for i, (x, row) in enumerate(zip(values, rows, strict=True)) if x is not None]
        if known:
            variants[axis] = _scatter(known, axis)
    said = "Bars are 95 % intervals over clips; the line joins the rows that none beats in both (Pareto front)."
    return Figure("CER against cost", said if variants else "No run says what it cost.", variants)


def _scatter(points: Sequence[tuple[float, int, Row]], axis: str) -> dict[str, Any]:
    estimates = [row.estimate["validation"] for _, _, row in points]
    x, y = [price for price, _, _ in points], [100 * e.value for e in estimates]
    front = pareto(list(zip(x, y, strict=True)))
    markers = _points(
        x,
        y,
        "markers+text",
        text=[f"#{i + 1}" for _, i, _ in points],
        textposition=[LABEL_PLACES[i % len(LABEL_PLACES)] for _, i, _ in points],
        marker={"size": 10, "color": [colour(i) for _, i, _ in points]},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [100 * (e.high - e.value) for e in estimates],
            "arrayminus": [100 * (e.value - e.low) for e in estimates],
            "thickness": 1,
            "color": GREY,
        },
        customdata=[name(i, row) for _, i, row in points],
        hovertemplate=f"%{{customdata}}<br>%{{x:.3g}} {escape(axis)}, CER %{{y:.1f}} %<extra></extra>",
        showlegend=False,
    )
    ring = {"symbol": "circle-open", "size": 16, "line": {"width": 2}, "color": FRONT}
    line = _points([x[i] for i in front], [y[i] for i in front], "lines+markers", name="Pareto front", marker=ring)
    line |= {"line": {"dash": "dot", "width": 2, "color": FRONT}, "hoverinfo": "skip"}
    wide = min(x) > 0 and max(x) > 10 * min(x)
    return _figure([markers, line], axis, CER, xaxis={"type": "log"} if wide else {}, yaxis={"rangemode": "tozero"})


def _millions(row: Row) -> float | None:
    return row.parameters / 1e6 if row.parameters else None


def axes(rows: Sequence[Row], keys: Sequence[str]) -> Figure:
    """Two swept keys against each other: a heat map of a grid, coloured points of a search."""
    few = [key for key in keys if len({repr(row.choices[key]) for row in rows}) > 1]
    pairs = list(combinations(few, 2))[:MOST_PAIRS]
    variants = {f"{a} × {b}": _pair(rows, a, b) for a, b in pairs}
    said = "Mean validation CER % of the rows that share both values; darker is better. Other keys are averaged over."
    return Figure("Two axes", said if pairs else "Fewer than two keys were swept.", variants)


def _pair(rows: Sequence[Row], first: str, second: str) -> dict[str, Any]:
    cells: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        cell = (format_value(row.choices[first]), format_value(row.choices[second]))
        cells.setdefault(cell, []).append(100 * row.estimate["validation"].value)
    x, y = (_ordered(rows, key) for key in (first, second))
    scale: dict[str, Any] = {"colorscale": "Viridis", "colorbar": {"title": {"text": "CER %"}, "thickness": 10}}
    if len(x) > MOST_VALUES or len(y) > MOST_VALUES:
        found = [(row.choices[first], row.choices[second], 100 * row.estimate["validation"].value) for row in rows]
        a, b, z = (list(column) for column in zip(*found, strict=True))
        hover = "%{x}, %{y}: %{marker.color:.1f} %<extra></extra>"
        points = _points(a, b, "markers", marker={"size": 11, "color": z, **scale}, hovertemplate=hover)
        logs = [{"type": "log"} if _spans_decades(values) else {} for values in (a, b)]
        return _figure([points], escape(first), escape(second), xaxis=logs[0], yaxis=logs[1])
    z = [[mean(cells.get((a, b), [])) for a in x] for b in y]
    labels = [[escape(value) for value in values] for values in (x, y)]
    trace: dict[str, Any] = {"type": "heatmap", "x": labels[0], "y": labels[1], "z": z, "xgap": 2, "ygap": 2, **scale}
    trace |= {"texttemplate": "%{z:.1f}", "hovertemplate": "%{x}, %{y}: %{z:.1f} %<extra></extra>"}
    return _figure([trace], escape(first), escape(second), xaxis={"type": "category"}, yaxis={"type": "category"})


def _ordered(rows: Sequence[Row], key: str) -> list[str]:
    """A key's values as shown, numbers by size and before words."""
    values = {format_value(row.choices[key]): row.choices[key] for row in rows}
    return sorted(values, key=lambda s: (not _number(values[s]), values[s] if _number(values[s]) else 0, s))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _spans_decades(values: Sequence[Any]) -> bool:
    return all(_number(v) and v > 0 for v in values) and max(values) > 20 * min(values)


def seeds(rows: Sequence[Row]) -> Figure:
    """Every run of the rows that have several seeds."""
    repeated = [(i, row) for i, row in enumerate(rows) if len(row.runs) > 1]
    traces = [
        _points(
            [f"#{i + 1}"] * len(row.runs),
            [100 * cer for cer in row.each["validation"]],
            "markers",
            marker={"size": 10, "color": colour(i)},
            customdata=[escape(str(seed)) for seed in row.seeds],
            hovertemplate=f"{name(i, row)}<br>seed %{{customdata}}: %{{y:.1f}} %<extra></extra>",
            showlegend=False,
        )
        for i, row in repeated
    ]
    if not traces:
        return Figure("Seed spread", "One seed each: nothing can be said of it. Add seed=0,1,2 to the sweep.")
    x, y = [f"#{i + 1}" for i, _ in repeated], [100 * row.estimate["validation"].value for _, row in repeated]
    dash = {"symbol": "line-ew-open", "size": 24, "color": GREY, "line": {"width": 3}}
    means = _points(x, y, "markers", name="mean", hoverinfo="skip", marker=dash)
    figure = _figure([*traces, means], "row of the leaderboard", CER, xaxis={"type": "category"})
    return Figure("Seed spread", "Each point is a seed's run, the bar their mean.", {"seeds": figure})


def bars(table: Leaderboard) -> Figure:
    """How much each key matters."""
    found = importances(table)
    if not found.keys:
        return Figure("Parameter importances", found.how)
    keys = [escape(key) for key in found.keys]
    bar = {"type": "bar", "orientation": "h", "x": found.shares, "y": keys, "marker": {"color": COLOURS[0]}}
    traces = [bar | {"name": "share", "hovertemplate": "%{y}: %{x:.2f}<extra></extra>"}]
    if found.chance:
        marker = {"symbol": "diamond", "size": 9, "color": COLOURS[1]}
        traces.append(_points(found.chance, keys, "markers", name="what chance alone would give", marker=marker))
    shown = _figure(traces, "share", "", xaxis={"range": [0, 1]}, yaxis={"autorange": "reversed", "type": "category"})
    return Figure("Parameter importances", found.how, {"importances": shown})


def _points(x: Sequence[Any], y: Sequence[Any], mode: str, **settings: Any) -> dict[str, Any]:
    return {"type": "scatter", "mode": mode, "x": list(x), "y": list(y), **settings}


def _figure(traces: list[dict[str, Any]], x: str, y: str, **more: dict[str, Any]) -> dict[str, Any]:
    """Traces and a layout with titled axes; `more` goes into the axes."""
    axes_layout = {axis: {"title": {"text": title}, "automargin": True} for axis, title in (("xaxis", x), ("yaxis", y))}
    return {"data": traces, "layout": {axis: layout | more.get(axis, {}) for axis, layout in axes_layout.items()}}
