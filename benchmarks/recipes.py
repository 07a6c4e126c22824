"""Compares ways to fine-tune: error rates of some sweeps over seeds, and what the guard found of one model of each.

    python benchmarks/recipes.py outputs/full outputs/lora ...

Each folder is a sweep over seeds, and a row of the first table: CER of validation and test together, in the windows as
trained and in the full window, and the paired difference to the model before training. Intervals are bootstrapped over
clips, whose edits are summed over the seeds. Where a sweep has a folder `guard` of `kikitori guard`, the second table
has its figures next to those of the base; b and w: better and worse than the base, by the interval of the difference.
"""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from windows import against, cell, edits

from kikitori.guard.figures import compare, count
from kikitori.guard.measures import BETTER, WORSE, words
from kikitori.runs.results import FULL_WINDOW, guard_file
from kikitori.runtime.files import read_json, read_lines

HEADINGS = ("seeds", "loss", "windows as trained", "against base", "full window", "against base")
MARKS = {BETTER: " b", WORSE: " w"}


def main() -> None:
    sweeps = [Path(name) for name in sys.argv[1:]]
    console = Console(width=200)
    table = Table("", *HEADINGS, title="CER % of validation and test")
    for sweep in sweeps:
        table.add_row(sweep.name, *cells(completed(sweep)))
    console.print(table)
    guards = {sweep.name: figures_of(sweep / "guard") for sweep in sweeps if guarded(sweep)}
    if guards:
        console.print(guard_table(guards))


def completed(sweep: Path) -> list[Path]:
    """The folders of a sweep's completed runs."""
    found = [path.parent for path in sorted(sweep.glob("*/results.json")) if path.parent.name != "guard"]
    return [folder for folder in found if read_json(folder / "results.json")["status"] == "completed"]


def cells(folders: list[Path]) -> list[str]:
    """What a row says of the runs of a sweep."""
    base, own, full = (edits(folders, stage) for stage in ("before", "after", FULL_WINDOW))
    losses = [read_json(folder / "results.json")["history"][-1]["val/loss"] for folder in folders]
    loss = f"{sum(losses) / len(losses):.3f}"
    return [str(len(folders)), loss, cell(own), against(own, base), cell(full), against(full, base)]


def guarded(sweep: Path) -> bool:
    results = sweep / "guard" / "results.json"
    return results.exists() and read_json(results)["status"] == "completed"


def figures_of(guard: Path) -> list[dict[str, Any]]:
    """The guard's figures, computed from the texts that both models read."""
    base, tuned = (count(read_lines(guard_file(guard, who))) for who in ("base", "tuned"))
    return compare(base, tuned)


def guard_table(guards: dict[str, list[dict[str, Any]]]) -> Table:
    """A row per figure, a column per way; the base's figures are the same for all."""
    table = Table("set", "reading", "figure", "recordings", "base", *guards, title="Guard")
    found = {name: {key(row): row for row in rows} for name, rows in guards.items()}
    for row in next(iter(guards.values())):
        others = [found[name].get(key(row)) for name in guards]
        if row["measure"] == "loops" and not any(other and (other["tuned"] or other["base"]) for other in others):
            continue
        shown = [f"{other['tuned']:.1f}{MARKS.get(other['verdict'], '')}" if other else "" for other in others]
        table.add_row(*key(row)[:2], words(row["measure"]), str(row["recordings"]), f"{row['base']:.1f}", *shown)
    return table


def key(row: dict[str, Any]) -> tuple[str, str, str]:
    """What a figure is of."""
    return row["set"], row["reading"], row["measure"]


if __name__ == "__main__":
    main()
