"""The page's plots as Plotly figures in plain dicts: traces and layout. The page sets the colours of text and grid.

Plotly interprets tags in texts, links among them. `figure` escapes all texts but templates, in which they are escaped
where they are put in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from kikitori.compare.importance import importances
from kikitori.compare.label_placement import place_labels
from kikitori.compare.leaderboard import Leaderboard, Row, format_value, pareto
from kikitori.runs.reader import Run

COLOURS = ("#3d85c6", "#e08a1e", "#2a9d6e", "#c2508f", "#8b6fd6", "#b5651d", "#17a2b8", "#d1495b")
FRONT = "#d1495b"
GREY = "rgba(140,140,140,0.55)"
# Curves are cut off here, in percent, unless one lies above it throughout: a start at 400 % would flatten the rest.
MAX_RATE = 110
# A legend with more characters or entries than this would cover the plot; it shows ranks only.
MAX_LEGEND = 110
MAX_LEGEND_ENTRIES = 4
CER = "validation CER %"


@dataclass(frozen=True)
class Figure:
    """A plot with its variants by name, of which the page shows one at a time.

    caption: how to read it; without variants, why there is no plot, and the page leaves it out.
    """

    title: str
    caption: str
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)


def figures(table: Leaderboard, unfinished: Sequence[Run]) -> list[Figure]:
    """All plots of a table. unfinished: pruned and failed runs on the same data, for the curves."""
    ranked = [row for row in table.rows if "validation" in row.estimate]
    return [
        curves(ranked, unfinished),
        trade_off(ranked, table.hours_name),
        seeds(ranked),
        bars(table),
    ]


def colour(rank: int) -> str:
    """One colour for each of the first rows, grey for the others: more colours cannot be distinguished."""
    return COLOURS[rank] if rank < len(COLOURS) else GREY


def name(rank: int, row: Row) -> str:
    """A row's name on the plots."""
    return f"#{rank + 1} {row.label}"


def curves(rows: Sequence[Row], unfinished: Sequence[Run]) -> Figure:
    """Rates and losses over optimizer steps, one line per run."""
    lines = [(run, colour(i), name(i, row), i) for i, row in enumerate(rows) for run in row.runs]
    lines = [line for line in lines if line[0].results.get("history")]
    ended = [(run, GREY, f"{run.name} ({run.status})", len(rows)) for run in unfinished]
    keys = ("val/cer", "val/loss", "train/loss", "val/wer")
    variants = {}
    cut = 0.0
    for key in keys if lines else ():
        traces: list[dict[str, Any]] = []
        for run, tint, label, rank in [*lines, *ended]:
            first = not any(trace["legendgroup"] == label for trace in traces)
            traces.append(_curve(run, key, tint, label) | {"showlegend": first and rank < len(COLOURS)})
        _shorten_legend(traces, len(lines))
        is_rate = key in ("val/cer", "val/wer")
        highest, top = _rate_range(traces)
        cut = max(cut, top if is_rate and highest > top else 0)
        variants[key] = figure(
            traces, "optimizer step", key + " %" * is_rate, yaxis={"range": [0, top]} if is_rate else {}
        )
    caption = f"Rates above {cut:.0f} % are cut off. " * bool(cut) + "Pruned and failed runs are grey. " * bool(ended)
    caption += "Click a name to hide its lines."
    return Figure("Learning curves", caption if lines else "No run recorded its validations.", variants)


def _rate_range(traces: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """The highest value, and the upper end of an axis on which each curve is visible at its lowest point at least."""
    values = [[y for y in trace["y"] if y is not None] for trace in traces]
    highest = max((max(ys) for ys in values if ys), default=MAX_RATE)
    lowest = max((min(ys) for ys in values if ys), default=0)
    return highest, min(1.05 * highest, max(MAX_RATE, 1.1 * lowest))


def _shorten_legend(traces: Sequence[dict[str, Any]], num_ranked: int) -> None:
    """Names rows by rank alone (#1), and unfinished runs not at all, where their full names would cover the plot."""
    shown = [trace for trace in traces if trace["showlegend"]]
    if len(shown) > MAX_LEGEND_ENTRIES or sum(len(trace["name"]) for trace in shown) > MAX_LEGEND:
        for trace in traces[:num_ranked]:
            trace["name"] = trace["name"].partition(" ")[0]
        for trace in traces[num_ranked:]:
            trace["showlegend"] = False


def _curve(run: Run, key: str, tint: str, label: str) -> dict[str, Any]:
    rate = {"val/cer": "cer", "val/wer": "wer"}.get(key)
    scale = 100 if rate else 1
    rates = [(row["step"], scale * row[key]) for row in run.results.get("history", []) if key in row]
    start = run.score("validation", rate, "before") if rate else None
    if start is not None:
        rates.insert(0, (0, scale * start))
    x, y = zip(*rates, strict=True) if rates else ((), ())
    seed = escape(str(run.results.get("config", {}).get("seed")))
    unit = " %" if rate else ""
    hover = f"{escape(label)}<br>seed {seed}, step %{{x}}: %{{y:.3g}}{unit}<extra></extra>"
    line = points(x, y, "lines+markers", name=label, legendgroup=label, hovertemplate=hover)
    return line | {"line": {"color": tint, "width": 2}, "marker": {"size": 5}}


def trade_off(rows: Sequence[Row], hours_name: str) -> Figure:
    """CER against parameters and device hours, with the Pareto front."""
    variants = {}
    prices = {"parameters (M)": [_millions(row) for row in rows], hours_name: [row.hours for row in rows]}
    for axis, values in prices.items():
        known = [(x, i, row) for i, (x, row) in enumerate(zip(values, rows, strict=True)) if x is not None]
        # One point, or one price for all rows, shows no trade-off.
        if len({x for x, _, _ in known}) > 1:
            variants[axis] = _scatter(known, axis)
    caption = (
        "Bars are 95 % intervals over clips. The line joins the rows that no other row beats in both (Pareto front)."
    )
    return Figure("CER against cost", caption if variants else "No two rows with different costs.", variants)


def _scatter(known: Sequence[tuple[float, int, Row]], axis: str) -> dict[str, Any]:
    estimates = [row.estimate["validation"] for _, _, row in known]
    x, y = [price for price, _, _ in known], [100 * e.value for e in estimates]
    front = pareto(list(zip(x, y, strict=True)))
    is_log = min(x) > 0 and max(x) > 10 * min(x)
    # As Plotly counts: on a logarithmic axis a range is given in powers of ten.
    places = [math.log10(price) for price in x] if is_log else x
    labels = place_labels(places, y, [*front, *range(len(known))])
    markers = points(
        x,
        y,
        "markers+text",
        text=[f"#{i + 1}" if k in labels else "" for k, (_, i, _) in enumerate(known)],
        textposition=[labels.get(k, "top right") for k in range(len(known))],
        marker={"size": 10, "color": [colour(i) for _, i, _ in known]},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [100 * (e.high - e.value) for e in estimates],
            "arrayminus": [100 * (e.value - e.low) for e in estimates],
            "thickness": 1,
            "color": GREY,
        },
        customdata=[name(i, row) for _, i, row in known],
        hovertemplate=f"%{{customdata}}<br>%{{x:.3g}} {escape(axis)}, CER %{{y:.1f}} %<extra></extra>",
        showlegend=False,
    )
    ring = {"symbol": "circle-open", "size": 16, "line": {"width": 2}, "color": FRONT}
    line = points([x[i] for i in front], [y[i] for i in front], "lines+markers", name="Pareto front", marker=ring)
    line |= {"line": {"dash": "dot", "width": 2, "color": FRONT}, "hoverinfo": "skip"}
    # Room for the labels of the outermost points.
    margin = 0.1 * (max(places) - min(places))
    horizontal = {"range": [min(places) - margin, max(places) + margin]} | ({"type": "log"} if is_log else {})
    vertical = {"range": [0, 112 * max(e.high for e in estimates) or 1]}
    return figure([markers, line], axis, CER, xaxis=horizontal, yaxis=vertical)


def _millions(row: Row) -> float | None:
    return row.parameters / 1e6 if row.parameters else None


def ordered(rows: Sequence[Row], key: str) -> list[str]:
    """The values of a key as they are shown: numbers in order, then words."""
    values = {format_value(row.choices[key]): row.choices[key] for row in rows}
    return sorted(values, key=lambda s: (not is_number(values[s]), values[s] if is_number(values[s]) else 0, s))


def is_number(value: Any) -> bool:
    """Whether a value can be placed on an axis; true and false cannot."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def spans_decades(values: Sequence[Any]) -> bool:
    """Whether values need a logarithmic axis."""
    return all(is_number(v) and v > 0 for v in values) and max(values) > 20 * min(values)


def seeds(rows: Sequence[Row]) -> Figure:
    """The runs of each row that has several seeds."""
    repeated = [(i, row) for i, row in enumerate(rows) if len(row.runs) > 1 and not row.is_base]
    traces = [
        points(
            [f"#{i + 1}"] * len(row.runs),
            [100 * cer for cer in row.each["validation"]],
            "markers",
            marker={"size": 10, "color": colour(i)},
            customdata=[str(seed) for seed in row.seeds],
            hovertemplate=f"{escape(name(i, row))}<br>seed %{{customdata}}: %{{y:.1f}} %<extra></extra>",
            showlegend=False,
        )
        for i, row in repeated
    ]
    if not traces:
        return Figure("Seed spread", "One seed each; add seed=0,1,2 to the sweep.")
    x, y = [f"#{i + 1}" for i, _ in repeated], [100 * row.estimate["validation"].value for _, row in repeated]
    dash = {"symbol": "line-ew-open", "size": 24, "color": GREY, "line": {"width": 3}}
    means = points(x, y, "markers", name="mean", hoverinfo="skip", marker=dash)
    drawn = figure([*traces, means], "row of the leaderboard", CER, xaxis={"type": "category"})
    return Figure("Seed spread", "Each point is the run of a seed, the bar is their mean.", {"seeds": drawn})


def bars(table: Leaderboard) -> Figure:
    """The importance of each key."""
    found = importances(table)
    if not found.keys:
        return Figure("Parameter importances", found.how)
    keys = list(found.keys)
    bar = {"type": "bar", "orientation": "h", "x": found.shares, "y": keys, "marker": {"color": COLOURS[0]}}
    traces = [bar | {"name": "share", "hovertemplate": "%{y}: %{x:.2f}<extra></extra>"}]
    if found.chance:
        marker = {"symbol": "diamond", "size": 9, "color": COLOURS[1]}
        traces.append(points(found.chance, keys, "markers", name="expected by chance alone", marker=marker))
    shown = figure(traces, "share", "", xaxis={"range": [0, 1]}, yaxis={"autorange": "reversed", "type": "category"})
    return Figure("Parameter importances", found.how, {"importances": shown})


def points(x: Sequence[Any], y: Sequence[Any], mode: str, **settings: Any) -> dict[str, Any]:
    """A trace of points; mode: markers, lines or both, joined by +."""
    return {"type": "scatter", "mode": mode, "x": list(x), "y": list(y), **settings}


def figure(traces: list[dict[str, Any]], x: str, y: str, **more: dict[str, Any]) -> dict[str, Any]:
    """Traces and a layout with axis titles. more: further settings of the axes."""
    axes_layout = {axis: {"title": {"text": title}, "automargin": True} for axis, title in (("xaxis", x), ("yaxis", y))}
    layout = {axis: layout | more.get(axis, {}) for axis, layout in axes_layout.items()}
    return {"data": _without_tags(traces), "layout": _without_tags(layout)}


def _without_tags(value: Any) -> Any:
    """A part of a figure in which no text is interpreted; templates are left as they are."""
    if isinstance(value, dict):
        return {k: part if k.endswith("template") else _without_tags(part) for k, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tags(part) for part in value]
    return escape(value) if isinstance(value, str) else value
