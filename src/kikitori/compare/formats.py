"""A comparison in a terminal, in Markdown, CSV or JSON."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from kikitori.compare.leaderboard import ALIKE, BEST, WORSE, Estimate, Leaderboard, Row, format_value
from kikitori.runs.reader import Run
from kikitori.runs.summary import percent

SEPARATE = (
    "These runs were scored on different clips or in different ways; their rates must not be compared across tables."
)
# Past so many, what varies says less than a run's name.
MOST_KEYS = 5
UNFOLDED = 10_000  # columns


def bracketed(estimate: Estimate | None) -> str:
    """A rate in percent with its interval, or a dash."""
    if estimate is None:
        return "–"
    return f"{percent(estimate.value)} [{percent(estimate.low)}, {percent(estimate.high)}]"


def spread(row: Row, split: str = "validation") -> str:
    """Lowest to highest of the seeds; a dash for one seed, of which nothing can be said."""
    each = row.each[split]
    return f"{percent(min(each))} to {percent(max(each))}" if len(each) > 1 else "–"


def verdict(row: Row) -> str:
    """In words, and by how much where a row is worse."""
    if row.verdict == WORSE and row.difference:
        overlap = ", but seeds overlap" if row.seeds_overlap else ""
        return f"worse by {bracketed(row.difference)}{overlap}"
    return row.verdict


def duration(seconds: float | None) -> str:
    """42 s, 3 min, 2.5 h."""
    if seconds is None:
        return "–"
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def number(value: float | None, digits: int = 1) -> str:
    """A number of so many digits after the point, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def identity(table: Leaderboard, row: Row) -> dict[str, str]:
    """The columns that say which configuration a row is."""
    if 0 < len(table.keys) <= MOST_KEYS:
        return {key: format_value(row.choices[key]) for key in table.keys}
    return {"run": row.runs[0].name + (f" +{len(row.runs) - 1}" if len(row.runs) > 1 else "")}


def scores(row: Row) -> dict[str, str]:
    """The columns that rank."""
    return {
        "val CER %": bracketed(row.estimate.get("validation")),
        "seeds": str(len(row.runs)),
        "spread": spread(row),
        "against the best": verdict(row),
        "test CER %": bracketed(row.estimate.get("test")),
    }


def costs(row: Row) -> dict[str, str]:
    """What a run of this configuration cost: the mean over its seeds."""
    seconds = [row.cost(key) for key in ("fit_s", "evaluate_s")]
    known = [s for s in seconds if s is not None]
    return {
        "time": duration(sum(known) if known else None),
        "clips/s": number(row.cost("train_clips_per_s")),
        "GB": number(row.cost("peak_memory_gb")),
        "M params": number(row.parameters / 1e6 if row.parameters else None),
    }


def failure(run: Run) -> str:
    """One line on a run that is not completed."""
    return f"{run.name}: {run.status}: {run.reason}" + (f" (log: {run.log})" if run.log else "")


def notes(table: Leaderboard) -> list[str]:
    """What one should, and should not, conclude from a table."""
    most = max((len(row.runs) for row in table.rows), default=0)
    said = [
        "Ranked by the validation CER of each run's best checkpoint, which validation chose: it flatters every row, "
        "and the first of many most. Test chose nothing.",
        "[low, high]: 95 % bootstrap over clips. It says how far other clips would move a figure, not other seeds.",
        f"{ALIKE[0].upper()}{ALIKE[1:]}: on the same resamples of clips, the interval of the difference to it holds 0. "
        "That is no proof that they are equal.",
        "Spread: lowest to highest of the seeds."
        if most > 1
        else "One seed each: nothing here says how far another seed would move a figure; add seed=0,1,2 to the sweep.",
    ]
    commits = {str((run.results.get("git") or {}).get("commit")) for run in table.runs}
    if len(commits) > 1:
        said.append(f"The runs come from {len(commits)} commits of kikitori.")
    if any((run.results.get("git") or {}).get("dirty") for run in table.runs):
        said.append("Some runs come from a checkout with changes that no commit holds.")
    return said


def print_tables(tables: Sequence[Leaderboard], failures: Sequence[Run]) -> None:
    """A table for each data set, in two halves where the terminal is too narrow for one, notes, and the failures."""
    # A pipe has no width of its own, and a folded cell is read by nobody.
    console = Console()
    console = console if console.is_terminal else Console(width=UNFOLDED)
    for table in tables:
        console.print(f"{table.name}; scored by {table.scoring}", markup=False, highlight=False, soft_wrap=True)
        names, ranks, prices = (
            [column(row) for row in table.rows] for column in (partial(identity, table), scores, costs)
        )
        whole = _draw(table, names, ranks, prices)
        if Measurement.get(console, console.options.update(max_width=UNFOLDED), whole).maximum <= console.width:
            console.print(whole)
        else:
            console.print(_draw(table, names, ranks))
            console.print(_draw(table, names, prices))
        for note in notes(table):
            console.print(f"· {note}", style="dim", markup=False, highlight=False)
        console.print()
    if len(tables) > 1:
        console.print(SEPARATE)
    if failures:
        console.print(f"Not completed: {len(failures)}", style="bold")
    for run in failures:
        console.print(f"  {failure(run)}", markup=False, highlight=False, soft_wrap=True)


def _draw(table: Leaderboard, *columns: Sequence[dict[str, str]]) -> Table:
    """The groups of columns side by side."""
    drawn = Table()
    rows = [dict(item for cells in group for item in cells.items()) for group in zip(*columns, strict=True)]
    for name in rows[0]:
        drawn.add_column(Text(name), justify="left" if name in (*table.keys, "run", "against the best") else "right")
    for cells, row in zip(rows, table.rows, strict=True):
        drawn.add_row(*map(Text, cells.values()), style="bold" if row.verdict == BEST else None)
    return drawn


def markdown(tables: Sequence[Leaderboard], failures: Sequence[Run]) -> str:
    """The tables, their notes and the failures, to be pasted."""
    lines = []
    for table in tables:
        rows = [identity(table, row) | scores(row) | costs(row) for row in table.rows]
        ruled = ["---:" if name in (*scores(table.rows[0]), *costs(table.rows[0])) else "---" for name in rows[0]]
        cells = [list(rows[0]), ruled, *(list(row.values()) for row in rows)]
        lines += [f"**{table.name}**; scored by {table.scoring}", ""]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
        lines += ["", *(f"- {note}" for note in notes(table)), ""]
    lines += [SEPARATE, ""] * (len(tables) > 1)
    if failures:
        lines += [f"Not completed: {len(failures)}", "", *(f"- {failure(run)}" for run in failures), ""]
    return "\n".join(lines)


def record(row: Row) -> dict[str, Any]:
    """A row with all its figures, as fractions, seconds and GB."""
    names = {
        "runs": [run.name for run in row.runs],
        "seeds": row.seeds,
        "choices": row.choices,
        "verdict": row.verdict,
        "difference": row.difference and asdict(row.difference),
    }
    for split in row.each:
        estimate = row.estimate.get(split)
        names[split] = {"cer": row.each[split], **({"mean": asdict(estimate)} if estimate else {})}
    cost = {key: row.cost(key) for key in ("prepare_s", "fit_s", "evaluate_s", "train_clips_per_s", "peak_memory_gb")}
    return {**names, "val_wer": row.wer, "device_hours": row.hours, "parameters": row.parameters, "cost": cost}


def as_json(tables: Sequence[Leaderboard], failures: Sequence[Run]) -> str:
    """All that is known, for a program."""
    told = [{"data": t.name, "scoring": t.scoring, "rows": [record(row) for row in t.rows]} for t in tables]
    failed = [{"run": r.name, "folder": str(r.folder), "status": r.status, "reason": r.reason} for r in failures]
    return json.dumps({"data_sets": told, "not_completed": failed}, ensure_ascii=False, indent=2)


def as_csv(tables: Sequence[Leaderboard], failures: Sequence[Run]) -> str:
    """A line a configuration, and one for each run that is not completed."""
    lines: list[dict[str, Any]] = []
    for table in tables:
        for row in table.rows:
            lines.append({"data": table.name, "scoring": table.scoring, "status": "completed", **_line(row)})
    for run in failures:
        lines.append({"status": run.status, "reason": run.reason, "runs": run.name})
    columns = list(dict.fromkeys(key for line in lines for key in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _line(row: Row) -> dict[str, Any]:
    """A record without nests: the numbers under names of one word each."""
    full = record(row)
    line = {"runs": " ".join(full["runs"]), "seeds": " ".join(map(str, full["seeds"])), **full["choices"]}
    for split in row.each:
        estimate = row.estimate.get(split)
        for name in ("value", "low", "high"):
            line[f"{split}_cer" + f"_{name}" * (name != "value")] = getattr(estimate, name, None)
        line |= {f"{split}_cer_{f.__name__}": f(row.each[split], default=None) for f in (min, max)}
    line |= {
        f"difference{'' if n == 'value' else '_' + n}": getattr(row.difference, n, None)
        for n in ("value", "low", "high")
    }
    return {
        **line,
        "verdict": row.verdict,
        **{k: full[k] for k in ("val_wer", "device_hours", "parameters")},
        **full["cost"],
    }
