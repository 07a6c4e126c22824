"""Formats the figures of all rounds as one table, for a terminal and in Markdown."""

from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

Rounds = Sequence[Mapping[str, Any]]
DASH = "–"
# (label, phase, key, factor from the stored unit, decimals, whether to compare with the recipe)
MEASURES = (
    ("prepared clips/s, one core", "prepare", "clips_per_s", 1.0, 1, True),
    ("stored kB per clip", "prepare", "bytes", 1e-3, 0, False),
    ("trained clips/s", "train", "clips_per_s", 1.0, 2, True),
    ("trained clips/s, whole run", "whole", "clips_per_s", 1.0, 2, True),
    ("peak memory, GB", "train", "peak_mb", 1e-3, 2, False),
    ("growth of a step, MB per clip", "train", "growth_mb_per_clip", 1.0, 0, False),
    ("kept for the backward pass, MB per clip", "train", "activation_mb_per_clip", 1.0, 0, False),
    ("achieved GFLOP/s", "train", "flops_per_s", 1e-9, 0, False),
    ("of the machine's matrix rate, %", "train", "utilisation", 100.0, 0, False),
    ("evaluated clips/s", "evaluate", "clips_per_s", 1.0, 2, True),
    ("CER after the run, %", "evaluate", "cer", 100.0, 1, False),
)
# The contender that ratios compare with.
PEER = "recipe"


def summarise(rounds: Rounds) -> dict[str, dict[str, Any]]:
    """Returns mean, min and max over the rounds, by contender and `phase/key`, and those of the ratio to the recipe."""
    summary: dict[str, dict[str, Any]] = {}
    peers = {row["round"]: row for row in rounds if row["contender"] == PEER}
    for name in dict.fromkeys(row["contender"] for row in rounds):
        rows = [row for row in rounds if row["contender"] == name]
        figures = summary.setdefault(name, {})
        for _, phase, key, _, _, compared in MEASURES:
            values = [row[phase][key] for row in rows if row[phase][key] is not None]
            figures[f"{phase}/{key}"] = _spread(values)
            if compared:
                # A round in reverse order, or an interrupted one, may not have its peer yet.
                pairs = [(row, peers[row["round"]]) for row in rows if row["round"] in peers]
                ratios = [row[phase][key] / peer[phase][key] for row, peer in pairs]
                figures[f"{phase}/{key}/ratio"] = _spread(ratios)
    return summary


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    return {"mean": mean(values), "low": min(values), "high": max(values)} if values else None


def rows(summary: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Returns the header, then one row per measure with one column per contender; ratios have a separate row below."""
    found = [["", *summary]]
    for label, phase, key, factor, digits, compared in MEASURES:
        figures = [summary[name][f"{phase}/{key}"] for name in summary]
        found.append([label, *(_cell(figure, lambda v, d=digits, f=factor: f"{v * f:,.{d}f}") for figure in figures)])
        if compared and PEER in summary:
            ratios = [summary[name][f"{phase}/{key}/ratio"] for name in summary]
            found.append([f"  times the {PEER}", *(_cell(ratio, lambda v: f"{v:.2f}") for ratio in ratios)])
    return found


def _cell(figure: Mapping[str, float] | None, show: Callable[[float], str]) -> str:
    """Formats the mean, with [min, max] if the rounds differ."""
    if figure is None:
        return DASH
    middle, low, high = (show(figure[key]) for key in ("mean", "low", "high"))
    return middle if low == high else f"{middle} [{low}, {high}]"


def markdown(table: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """Formats the table and its footnotes."""
    rule = ["---", *["---:"] * (len(table[0]) - 1)]
    lines = ["| " + " | ".join(cell.strip() for cell in row) + " |" for row in (table[0], rule, *table[1:])]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), ""])


def show(table: Sequence[Sequence[str]], notes: Sequence[str]) -> None:
    """Prints the table and its footnotes in the terminal."""
    drawn = Table(*table[0])
    for column in drawn.columns[1:]:
        column.justify = "right"
    for row in table[1:]:
        drawn.add_row(*row)
    console = Console()
    console.print(drawn)
    for note in notes:
        console.print(f"· {note}", style="dim", markup=False, highlight=False)
