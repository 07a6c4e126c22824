"""A comparison as text: terminal table, Markdown, CSV and JSON."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kikitori.compare.leaderboard import ALIKE, BEST, WORSE, Estimate, Leaderboard, Row, device_hours, format_value
from kikitori.runs.reader import Run
from kikitori.runs.summary import Grid, fit, percent, plain_text, terminal
from kikitori.runtime import console
from kikitori.runtime.console import duration
from kikitori.runtime.text import printable_line

SEPARATE = (
    "These runs were scored on different clips or in different ways; their rates must not be compared across tables."
)
# Spreadsheets take a cell that begins so for a formula, the wide forms in Japanese ones. In some countries a semicolon
# begins a cell.
FORMULA = re.compile(r"(^|;)(?=[\s\"']*[=+\-@＝＋－＠])")
# With more keys than this, a row is named by its run.
MAX_KEYS = 5


def bracketed(estimate: Estimate | None) -> str:
    """A rate in percent with its interval, or a dash."""
    if estimate is None:
        return "–"
    return f"{percent(estimate.value)} [{percent(estimate.low)}, {percent(estimate.high)}]"


def spread(row: Row, split: str = "validation") -> str:
    """The lowest and the highest rate of the seeds; a dash for a single seed."""
    each = row.each[split]
    return f"{percent(min(each))} to {percent(max(each))}" if len(each) > 1 else "–"


def verdict(row: Row) -> str:
    """The verdict on a row, with the difference to the best where it is worse."""
    if row.verdict == WORSE and row.difference:
        overlap = "; seeds overlap" if row.seeds_overlap else ""
        return f"worse by {bracketed(row.difference)}{overlap}"
    return row.verdict


def number(value: float | None, digits: int = 1) -> str:
    """A number with `digits` digits after the point, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def identity(table: Leaderboard, row: Row) -> dict[str, str]:
    """The columns that name the configuration of a row: the keys that vary, or the first run."""
    if 0 < len(table.keys) <= MAX_KEYS:
        cells = {key: format_value(row.choices.get(key)) for key in table.keys}
        return cells | ({table.keys[0]: row.label} if row.is_base else {})
    return {"run": row.runs[0].name + (f" and {len(row.runs) - 1} more" if len(row.runs) > 1 else "")}


def scores(row: Row) -> dict[str, str]:
    """The columns of rates and verdicts."""
    return {
        "val CER %": bracketed(row.estimate.get("validation")),
        "seeds": "–" if row.is_base else str(row.num_seeds),
        "spread": spread(row),
        "against the best": verdict(row),
        "test CER %": bracketed(row.estimate.get("test")),
        **{f"val {code} CER %": number(None if cer is None else 100 * cer) for code, cer in row.languages.items()},
    }


def costs(row: Row) -> dict[str, str]:
    """The columns of costs: means over the seeds."""
    seconds = [row.cost(key) for key in ("fit_s", "evaluate_s")]
    known = [s for s in seconds if s is not None]
    return {
        "time": duration(sum(known) if known else None),
        "clips/s": number(row.cost("train_clips_per_s")),
        "peak GB": number(row.cost("peak_memory_gb")),
        "M params": number(row.parameters / 1e6 if row.parameters else None),
    }


def failure(run: Run) -> str:
    """One line about a run that is not completed."""
    return f"{run.name}: {run.status}: {run.reason}" + (f" (log: {run.log})" if run.log else "")


def notes(table: Leaderboard) -> list[str]:
    """How to read a table, and what it does not show."""
    most = max((row.num_seeds for row in table.rows), default=0)
    lines = [
        "Ranked by validation CER of each run's best checkpoint. That checkpoint was chosen on validation too, so "
        "these rates are optimistic, most of all for the top rows. The test split was not used for any choice.",
        "[low, high]: 95 % interval from a bootstrap over clips. It covers the choice of clips, not of seeds.",
        f"{ALIKE[0].upper()}{ALIKE[1:]}: on the same resampled clips, the interval of the difference to the best "
        "contains 0. This does not show that they are equal.",
        "Spread: lowest to highest of the seeds."
        if most > 1
        else "One seed each, so the variation between seeds is unknown; add seed=0,1,2 to the sweep.",
    ]
    if any(row.is_base for row in table.rows):
        lines.append("Before training: the pretrained model, as a run scored it before its first step.")
    if any(rate == 1.0 for row in table.rows for rate in row.each["validation"]):
        lines.append("A CER of exactly 100.0 % means that a model writes nothing yet, or nothing that is text.")
    commits = {str((run.results.get("git") or {}).get("commit")) for run in table.runs}
    if len(commits) > 1:
        lines.append(f"The runs come from {len(commits)} different commits of kikitori.")
    if any((run.results.get("git") or {}).get("dirty") for run in table.runs):
        lines.append("Some runs come from a checkout with uncommitted changes.")
    return lines


def print_tables(tables: Sequence[Leaderboard], failures: Sequence[Run]) -> None:
    """Prints the table of each data set with its notes, and the failures."""
    screen = terminal()
    for table in tables:
        screen.print(f"{table.name}; scored by {table.scoring}", markup=False, highlight=False, soft_wrap=True)
        for part in fit(_grid(table), screen):
            screen.print(part)
        for note in notes(table):
            screen.print(f"· {note}", style="dim", markup=False, highlight=False)
        screen.print()
    if len(tables) > 1:
        screen.print(SEPARATE)
    if failures:
        screen.print(f"Not completed: {len(failures)}", style="bold")
    for run in failures:
        # What is indented further belongs to the reason of this run.
        lines = failure(run).replace("\n", "\n    ")
        screen.print(f"  {lines}", markup=False, highlight=False, soft_wrap=True)


def _grid(table: Leaderboard) -> Grid:
    """The cells of a table; in a narrow terminal, the rates, the verdicts and the costs stand below each other."""
    rows = [identity(table, row) | scores(row) | costs(row) for row in table.rows]
    keys, rates, prices = (
        list(columns) for columns in (identity(table, table.rows[0]), scores(table.rows[0]), costs(table.rows[0]))
    )
    return Grid(
        keys,
        groups=[rates[:3], rates[3:], prices],
        columns={name: [cells[name] for cells in rows] for name in rows[0]},
        left=[*keys, "against the best"],
        bold=[row.verdict == BEST for row in table.rows],
    )


def markdown(tables: Sequence[Leaderboard], failures: Sequence[Run]) -> str:
    """The tables, their notes and the failures as Markdown."""
    lines = []
    for table in tables:
        rows = [identity(table, row) | scores(row) | costs(row) for row in table.rows]
        ruled = ["---:" if name in (*scores(table.rows[0]), *costs(table.rows[0])) else "---" for name in rows[0]]
        cells = [list(rows[0]), ruled, *(list(row.values()) for row in rows)]
        lines += [f"**{plain_text(table.name)}**; scored by {plain_text(table.scoring)}", ""]
        lines += ["| " + " | ".join(map(plain_text, row)) + " |" for row in cells]
        lines += ["", *(f"- {note}" for note in notes(table)), ""]
    lines += [SEPARATE, ""] * (len(tables) > 1)
    if failures:
        lines += [f"Not completed: {len(failures)}", "", *(f"- {plain_text(failure(run))}" for run in failures), ""]
    return "\n".join(lines)


def figures_of(row: Row) -> dict[str, Any]:
    """All figures of a row, in fractions, seconds and GB."""
    record = {
        "runs": [run.name for run in row.runs],
        "seeds": row.seeds,
        "is_base": row.is_base,
        "choices": row.choices,
        "verdict": row.verdict,
        "difference": row.difference and asdict(row.difference),
    }
    for split in row.each:
        estimate = row.estimate.get(split)
        record[split] = {"cer": row.each[split], **({"mean": asdict(estimate)} if estimate else {})}
    cost = {key: row.cost(key) for key in ("prepare_s", "fit_s", "evaluate_s", "train_clips_per_s", "peak_memory_gb")}
    record |= {"validation_cer_by_language": row.languages} if row.languages else {}
    return {**record, "validation_wer": row.wer, "device_hours": row.hours, "parameters": row.parameters, "cost": cost}


def as_json(tables: Sequence[Leaderboard], failures: Sequence[Run]) -> str:
    """All figures as JSON."""
    data_sets = [{"data": t.name, "scoring": t.scoring, "rows": [figures_of(row) for row in t.rows]} for t in tables]
    failed = [{"run": r.name, "folder": str(r.folder), "status": r.status, "reason": r.reason} for r in failures]
    return console.as_json({"data_sets": data_sets, "not_completed": failed}, indent=2)


def as_csv(tables: Sequence[Leaderboard], failures: Sequence[Run]) -> str:
    """One line per run, for spreadsheets and pandas, with the rank and the verdict of its configuration."""
    lines: list[dict[str, Any]] = []
    for table in tables:
        for rank, row in enumerate(table.rows, 1):
            where = {"data": table.name, "scoring": table.scoring, "rank": rank, "verdict": row.verdict}
            lines += [where | _line(run, row.choices) for run in row.runs]
    lines += [{"run": run.name, "status": run.status, "reason": run.reason} for run in failures]
    columns = list(dict.fromkeys(key for line in lines for key in line))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([csv_cell(column) for column in columns])
    writer.writerows([csv_cell(line.get(column)) for column in columns] for line in lines)
    return text.getvalue()


def csv_cell(value: Any) -> Any:
    """A number as it is, and any other value as a text that no spreadsheet calculates."""
    if value is None or isinstance(value, int | float):
        return value
    return FORMULA.sub(r"\1'", printable_line(str(value)))


def _line(run: Run, choices: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings, its rates as fractions with their intervals, and its costs."""
    line = {"run": run.name, "status": run.status, "reason": "", "command": run.results.get("command")}
    line |= {"seed": run.results.get("config", {}).get("seed"), **choices}
    scores = run.results.get("scores", {})
    for stage, suffix in ((run.stage, ""), *([("before", "_before")] if run.stage == "after" else [])):
        for split, rates in scores.get(stage, {}).items():
            for rate in ("cer", "wer"):
                low, high = rates.get(f"{rate}_ci95") or (None, None)
                name = f"{split}_{rate}{suffix}"
                line |= {name: rates.get(rate), f"{name}_low": low, f"{name}_high": high}
    cost = run.results.get("cost", {})
    keys = ("prepare_s", "fit_s", "evaluate_s", "train_clips_per_s", "peak_memory_gb", "device")
    line |= {"parameters": run.results.get("model", {}).get("parameters"), "device_hours": device_hours(run)}
    return line | {key: cost.get(key) for key in keys}
