"""Compares models trained in bucketed and in full windows, evaluated in both: a table of the runs of some sweeps.

    python benchmarks/windows.py outputs/train-sweep/2026-11-23/10-00-00 ...

A row is a way to train, over all its seeds and over validation and test: the CER in the model's own windows and in the
full window, each with its 95 % interval, and the differences to training and evaluating in the full window. Intervals
are bootstrapped over clips, whose edits are summed over the seeds; differences are paired by clip.
"""

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from kikitori.metrics.bootstrap import interval, resampled
from kikitori.metrics.error_rates import corpus_rate
from kikitori.runs.results import FULL_WINDOW, predictions_file
from kikitori.runs.summary import percent
from kikitori.runtime.files import read_json, read_lines

SPLITS = ("validation", "test")


def main() -> None:
    ways: dict[tuple[Any, ...], list[Path]] = defaultdict(list)
    for path in sorted(path for sweep in sys.argv[1:] for path in Path(sweep).glob("*/results.json")):
        results = read_json(path)
        if results["status"] != "completed":
            continue
        data, steps = results["config"]["data"], results["config"]["trainer"]["max_steps"]
        bucketed = (
            (data["full_window_share"], data["window_margin_s"]) if data["window"] == "bucketed" else (None, None)
        )
        ways[steps, data["window"], *bucketed].append(path.parent)
    full = next((edits(folders, "after") for way, folders in ways.items() if way[1] == "full"), None)
    table = Table("steps", "trained in", "full_window_share", "margin_s", "seeds", *HEADINGS, title="CER %")
    for way, folders in sorted(ways.items(), key=str):
        own = edits(folders, "after")
        whole = own if way[1] == "full" else edits(folders, FULL_WINDOW)
        cells = [cell(own), against(own, full), cell(whole), against(whole, full)]
        table.add_row(*("" if fact is None else str(fact) for fact in way), str(len(folders)), *cells)
    Console(width=160).print(table)


HEADINGS = ("windows as trained", "against full", "full window", "against full")


def edits(folders: list[Path], stage: str) -> NDArray[np.int64]:
    """Returns (clips, 2): edits and length of each clip, summed over the seeds."""
    counts: dict[str, NDArray[np.int64]] = defaultdict(lambda: np.zeros(2, dtype=np.int64))
    for folder in folders:
        for row in (row for split in SPLITS for row in read_lines(predictions_file(folder, split, stage))):
            counts[row["clip"]] += (row["cer_edits"], row["cer_length"])
    return np.array([counts[clip] for clip in sorted(counts)])


def cell(counts: NDArray[np.int64]) -> str:
    low, high = interval(resampled(counts))
    return f"{percent(corpus_rate(counts))} [{percent(low)}, {percent(high)}]"


def against(counts: NDArray[np.int64], full: NDArray[np.int64] | None) -> str:
    if full is None or np.array_equal(counts, full):
        return ""
    low, high = interval(resampled(counts) - resampled(full))
    return f"{percent(corpus_rate(counts) - corpus_rate(full), '+')} [{percent(low, '+')}, {percent(high, '+')}]"


if __name__ == "__main__":
    main()
