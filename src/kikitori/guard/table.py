"""The guard's figures as a table and in words: a tuned model next to its base."""

from collections.abc import Mapping, Sequence
from typing import Any

from kikitori.guard.measures import LOOPS, words
from kikitori.runtime.errors import shortened

HEADER = ["set", "reading", "figure", "recordings", "base", "tuned", "change", ""]


def guard_rows(figures: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The table, header first; without repetitions where neither model repeats itself. Changes have 95 % intervals."""
    shown = [row for row in figures if row["measure"] != LOOPS or row["base"] or row["tuned"]]
    return [HEADER, *map(_cells, shown)] if shown else []


def guard_legend(figures: Sequence[Mapping[str, Any]]) -> str:
    """What the table's words mean and what it leaves out, for a reader without the documents."""
    left_out = sum(row["measure"] == LOOPS and not row["base"] and not row["tuned"] for row in figures)
    figure = "figure" if left_out == 1 else "figures"
    omitted = f" Not listed: {left_out} {figure} of texts that repeat themselves, where none does." if left_out else ""
    return (
        "Own windows: as kikitori reads; full window: as stock tools do. The last column says better or worse where a "
        "permutation test confirms the interval (p ≤ 0.05), which takes six recordings or more. One in twenty would by "
        f"chance.{omitted}"
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    low, high = row["change_ci95"]
    change = f"{row['change']:+.1f} [{low:+.1f}, {high:+.1f}]"
    values = [f"{row['base']:.1f}", f"{row['tuned']:.1f}", change, row["verdict"]]
    return [row["set"], row["reading"], words(row["measure"]), str(row["recordings"]), *values]


def guard_lines(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many figures are worse and better than the base's, and which."""
    lines = []
    for verdict in ("worse", "better"):
        rows = [describe_figure(row) for row in figures if row["verdict"] == verdict]
        if rows:
            lines.append(
                f"guard: {len(rows)} of {len(figures)} figures are {verdict} than the base's: {shortened(rows)}"
            )
    return lines or ([f"guard: none of {len(figures)} figures differs clearly from the base's"] if figures else [])


def describe_figure(row: Mapping[str, Any]) -> str:
    """A figure in words: silence, own windows: characters/min 0.0 → 6.0."""
    return f"{row['set']}, {row['reading']}: {words(row['measure'])} {row['base']:.1f} → {row['tuned']:.1f}"
