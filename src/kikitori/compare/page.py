"""The comparison as one HTML file that opens anywhere: no network, no other file, nothing of who spoke."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from kikitori.compare import clip_diffs, formats
from kikitori.compare.leaderboard import ALIKE, BEST, Leaderboard, Row
from kikitori.compare.plots import figures
from kikitori.runs.reader import Run
from kikitori.runtime.errors import DataError

TEMPLATE = Path(__file__).parent / "templates"


def write_page(path: Path, tables: Sequence[Leaderboard], failures: Sequence[Run], command: str) -> None:
    """Write the page. Raises DataError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(tables, failures, command), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise DataError(f"--report {path} cannot be written: {error.strerror}; choose another file") from error


def render(tables: Sequence[Leaderboard], failures: Sequence[Run], command: str) -> str:
    """The page's text. Everything that a run brought along is escaped: by Jinja in the tables, here in the data."""
    environment = Environment(loader=FileSystemLoader(TEMPLATE), autoescape=True, undefined=StrictUndefined)
    sections = [
        _section(table, [run for run in failures if _of_same_data(run, table, len(tables))]) for table in tables
    ]
    share = clip_diffs.MAX_AUDIO // len(tables)
    data = [
        {"figures": [asdict(figure) for figure in section["figures"]], "clips": clip_diffs.clips_of_table(table, share)}
        for section, table in zip(sections, tables, strict=True)
    ]
    return environment.get_template("page.html").render(
        sections=sections,
        failures=failures,
        separate=formats.SEPARATE if len(tables) > 1 else "",
        command=command,
        made=datetime.now().isoformat(" ", "minutes"),
        num_runs=sum(len(table.runs) for table in tables),
        data=script_json(data),
        plotly=Markup(get_plotlyjs()),
        css=Markup((TEMPLATE / "page.css").read_text(encoding="utf-8")),
        js=Markup((TEMPLATE / "page.js").read_text(encoding="utf-8")),
    )


def script_json(value: Any) -> Markup:
    """JSON for the inside of a script element, which a "</script>" in a transcript must not close."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _finite(value: Any) -> Any:
    """JSON knows neither NaN nor infinity."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _of_same_data(run: Run, table: Leaderboard, num_tables: int) -> bool:
    """Whether an unfinished run with a history belongs to a table; by digest where there are several."""
    digests = [
        r.results.get("data", {}).get("splits", {}).get("validation", {}).get("digest") for r in (run, table.runs[0])
    ]
    return bool(run.results.get("history")) and (
        num_tables == 1 or (digests[0] is not None and digests[0] == digests[1])
    )


def _section(table: Leaderboard, unfinished: Sequence[Run]) -> dict[str, Any]:
    """What the template needs of a data set."""
    rows = [_leaderboard_row(table, rank, row) for rank, row in enumerate(table.rows, 1)]
    return {
        "name": table.name,
        "scoring": table.scoring,
        "said": conclusion(table),
        "columns": [(name, short(name, table.keys)) for name, _, _ in rows[0]["cells"]],
        "rows": rows,
        "notes": formats.notes(table),
        "figures": figures(table, unfinished),
        "runs": [_run(run, rank) for rank, row in enumerate(table.rows, 1) for run in row.runs],
    }


def short(name: str, keys: Sequence[str]) -> str:
    """A key's last part, which a telephone has room for, where no other key ends alike."""
    last = name.rpartition(".")[2]
    return last if name in keys and sum(key.rpartition(".")[2] == last for key in keys) == 1 else name


def conclusion(table: Leaderboard) -> str:
    """The answer in a sentence or two."""
    best = table.rows[0]
    if best.verdict != BEST:
        return "No run was scored on validation, so nothing is ranked."
    alike = sum(row.verdict == ALIKE for row in table.rows)
    test = f", test {formats.bracketed(best.estimate['test'])} %" if "test" in best.estimate else ""
    said = f"Best: {best.label}, with a validation CER of {formats.bracketed(best.estimate['validation'])} %{test}."
    if len(table.rows) == 1:
        return said
    others = len(table.rows) - 1
    if not alike:
        return f"{said} {'The other one is' if others == 1 else f'The {others} others are'} worse on these clips."
    return f"{said} {alike} of {others} others cannot be told from it on these clips."


def _leaderboard_row(table: Leaderboard, rank: int, row: Row) -> dict[str, Any]:
    """Cells as (column, text, value to sort by), the words to filter by, and where its interval's bar stands."""
    validation, test = row.estimate.get("validation"), row.estimate.get("test")
    values = {
        "seeds": len(row.runs),
        "val CER %": validation and validation.value,
        "spread": max(row.each["validation"], default=0) - min(row.each["validation"], default=0),
        "against the best": row.difference.value if row.difference else 0.0 if row.verdict == BEST else None,
        "test CER %": test and test.value,
        "time": sum(row.cost(key) or 0 for key in ("fit_s", "evaluate_s")),
        "clips/s": row.cost("train_clips_per_s"),
        "GB": row.cost("peak_memory_gb"),
        "M params": row.parameters,
        "val WER %": row.wer,
        table.hours_name: row.hours,
        **row.choices,
    }
    shown = formats.identity(table, row) | formats.scores(row)
    shown |= {"val WER %": formats.percent(row.wer) if row.wer is not None else "–"}
    shown |= formats.costs(row) | {table.hours_name: formats.number(row.hours, 3)}
    cells = [("#", str(rank), rank), *((key, text, values.get(key, text)) for key, text in shown.items())]
    words = [f"{key}={text}" for key, text in shown.items()] + [run.name for run in row.runs]
    top = max(r.estimate["validation"].high for r in table.rows if "validation" in r.estimate) if validation else 1
    place = {n: 100 * getattr(validation, n) / (top or 1) for n in ("low", "value", "high")} if validation else None
    return {"cells": cells, "words": " ".join(words), "verdict": row.verdict, "bar": place}


def _run(run: Run, rank: int) -> dict[str, Any]:
    """A line of the list of runs."""
    git, config = run.results.get("git") or {}, run.results.get("config", {})
    return {
        "rank": rank,
        "name": run.name,
        "seed": config.get("seed"),
        "commit": str(git.get("commit", "unknown"))[:12] + " (changed)" * bool(git.get("dirty")),
        "version": run.results.get("versions", {}).get("kikitori", ""),
        "started": str(run.results.get("started", ""))[:16].replace("T", " "),
        "device": run.results.get("cost", {}).get("device", ""),
        "command": run.command,
    }
