"""The comparison as one HTML file, which needs no network and no other file and names no speaker."""

import json
import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
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
from kikitori.compare.search_plots import search_figures
from kikitori.config.overrides import override
from kikitori.guard.table import guard_legend, guard_rows
from kikitori.runs.reader import Run
from kikitori.runs.results import SWEEP
from kikitori.runtime.errors import DataError
from kikitori.runtime.files import is_regular, write_text

TEMPLATES = Path(__file__).parent / "templates"
# More runs and sweeps than this are named by the folder that they share.
MAX_NAMES = 3


def write_page(path: Path, tables: Sequence[Leaderboard], failures: Sequence[Run], command: str) -> None:
    """Writes the page. Raises DataError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path) and not is_regular(path):
            raise DataError(f"--report {path} is a link, a folder or a device; choose another file")
        write_text(path, render(tables, failures, command))
    except OSError as error:
        raise DataError(f"--report {path} cannot be written: {error.strerror}; choose another file") from error


def render(tables: Sequence[Leaderboard], failures: Sequence[Run], command: str) -> str:
    """The page as HTML. Text from runs is escaped: by Jinja in the tables, by `script_json` in the data."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    sections = [
        _section(table, [run for run in failures if _of_same_data(run, table, len(tables))]) for table in tables
    ]
    share = clip_diffs.MAX_AUDIO // len(tables)
    data: list[dict[str, Any]] = [
        {"figures": [asdict(figure) for figure in section["figures"]], "clips": clip_diffs.clips_of_table(table, share)}
        for section, table in zip(sections, tables, strict=True)
    ]
    for section, part in zip(sections, data, strict=True):
        section["has_clips"] = bool(part["clips"]["runs"])
    num_runs = sum(len(table.runs) for table in tables)
    return environment.get_template("page.html").render(
        title=title([*(run for table in tables for run in table.runs), *failures], num_runs),
        sections=sections,
        failures=[_failure(run) for run in failures],
        separate=formats.SEPARATE if len(tables) > 1 else "",
        command=command,
        made=datetime.now().isoformat(" ", "minutes"),
        data=script_json(data),
        plotly=Markup(get_plotlyjs()),
        css=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        js=Markup((TEMPLATES / "page.js").read_text(encoding="utf-8")),
    )


def title(runs: Sequence[Run], num_compared: int) -> str:
    """The sweeps and single runs that are compared, by folder, and the number of runs."""
    places = [run.folder.parent if (run.folder.parent / SWEEP).is_file() else run.folder for run in runs]
    names = list(dict.fromkeys(map(_short_path, places)))
    if len(names) > MAX_NAMES:
        names = [_short_path(Path(os.path.commonpath(places)))]
    return f"{', '.join(names)}: {num_compared} run{'s' * (num_compared != 1)} compared"


def _short_path(path: Path) -> str:
    """A folder as one would type it here; of a folder elsewhere only the name."""
    here = Path.cwd()
    return path.relative_to(here).as_posix() if here in path.parents else path.name


def script_json(value: Any) -> Markup:
    """JSON for a script element, which "</script>" in a transcript must not close."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _finite(value: Any) -> Any:
    """The value with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _of_same_data(run: Run, table: Leaderboard, num_tables: int) -> bool:
    """Whether an unfinished run with a history has the clips of a table; compared by digest if there are several."""
    digests = [
        r.results.get("data", {}).get("splits", {}).get("validation", {}).get("digest") for r in (run, table.runs[0])
    ]
    return bool(run.results.get("history")) and (
        num_tables == 1 or (digests[0] is not None and digests[0] == digests[1])
    )


def _section(table: Leaderboard, unfinished: Sequence[Run]) -> dict[str, Any]:
    """The values that the template needs for a data set."""
    rows = [_leaderboard_row(table, rank, row) for rank, row in enumerate(table.rows, 1)]
    # A column of dashes has nothing to show.
    columns = [i for i, _ in enumerate(rows[0]["cells"]) if any(row["cells"][i]["text"] != "–" for row in rows)]
    for row in rows:
        row["cells"] = [row["cells"][i] for i in columns]
    notes = formats.notes(table)
    if top := _highest(table):
        notes.append(f"The bars below the validation CER reach from 0 to {formats.percent(top)} %.")
    return {
        "name": table.name,
        "scoring": table.scoring,
        "conclusion": conclusion(table),
        "columns": [(cell["column"], cell["label"]) for cell in rows[0]["cells"]],
        "rows": rows,
        "notes": notes,
        "figures": [f for f in (*figures(table, unfinished), *search_figures(table)) if f.variants],
        "runs": [_run(run, rank) for rank, row in enumerate(table.rows, 1) if not row.is_base for run in row.runs],
    }


def short(name: str, keys: Sequence[str]) -> str:
    """The last part of a key, to save space, unless another key has the same last part."""
    last = name.rpartition(".")[2]
    return last if name in keys and sum(key.rpartition(".")[2] == last for key in keys) == 1 else name


def conclusion(table: Leaderboard) -> str:
    """The result in one or two sentences."""
    best = table.rows[0]
    if best.verdict != BEST:
        return "No run was scored on validation, so nothing is ranked."
    alike = sum(row.verdict == ALIKE for row in table.rows)
    test = f", test {formats.bracketed(best.estimate['test'])} %" if "test" in best.estimate else ""
    result = f"Best: {best.label}, with a validation CER of {formats.bracketed(best.estimate['validation'])} %{test}."
    if len(table.rows) == 1:
        return result
    others = len(table.rows) - 1
    if not alike:
        return f"{result} {'The other row is' if others == 1 else f'The {others} other rows are'} worse on these clips."
    if others == 1:
        return f"{result} The other row is indistinguishable from it on these clips."
    are = "is" if alike == 1 else "are"
    return f"{result} {alike} of the {others} other rows {are} indistinguishable from it on these clips."


def _highest(table: Leaderboard) -> float:
    """The upper end of the highest validation interval; 0 where nothing was scored on validation."""
    ranked = [row for row in table.rows if "validation" in row.estimate and not row.is_base]
    return max((row.estimate["validation"].high for row in ranked), default=0.0)


def _leaderboard_row(table: Leaderboard, rank: int, row: Row) -> dict[str, Any]:
    """The cells of a row, the words it is filtered by, its verdict, and the bar of its interval in percent."""
    validation, test = row.estimate.get("validation"), row.estimate.get("test")
    values = {
        "seeds": row.num_seeds,
        "val CER %": validation and validation.value,
        "spread": max(row.each["validation"], default=0) - min(row.each["validation"], default=0),
        "against the best": row.difference.value if row.difference else 0.0 if row.verdict == BEST else None,
        "test CER %": test and test.value,
        **{f"val {code} CER %": cer for code, cer in row.languages.items()},
        "time": sum(row.cost(key) or 0 for key in ("fit_s", "evaluate_s")),
        "clips/s": row.cost("train_clips_per_s"),
        "peak GB": row.cost("peak_memory_gb"),
        "M params": row.parameters,
        "val WER %": row.wer,
        table.hours_name: row.hours,
        **dict.fromkeys(table.keys),
        **row.choices,
    }
    shown = formats.identity(table, row) | formats.scores(row)
    shown |= {"val WER %": formats.percent(row.wer) if row.wer is not None else "–"}
    shown |= formats.costs(row) | {table.hours_name: formats.number(row.hours, 3)}
    cells = [_cell("#", "#", str(rank), rank)]
    cells += [_cell(key, short(key, table.keys), text, values.get(key, text)) for key, text in shown.items()]
    words = [f"{key}={text}" for key, text in shown.items()] + [run.name for run in row.runs]
    top = _highest(table) or 1.0
    bar = {n: min(100.0, 100 * getattr(validation, n) / top) for n in ("low", "value", "high")} if validation else None
    return {"cells": cells, "words": " ".join(words), "verdict": row.verdict, "bar": bar}


def _cell(column: str, label: str, text: str, value: Any) -> dict[str, Any]:
    """A cell: its text, in `main` and `detail` a rate and its interval, and its value to sort by."""
    main, bracket, detail = text.partition(" [")
    is_words = isinstance(value, str) and len(text) > 12
    parts = {"text": text, "main": main, "detail": bracket + detail, "is_words": is_words}
    return {"column": column, "label": label, "value": value, **parts}


def _run(run: Run, rank: int) -> dict[str, Any]:
    """A row of the list of runs."""
    git, config = run.results.get("git") or {}, run.results.get("config", {})
    return {
        "rank": rank,
        "name": run.name,
        "seed": config.get("seed"),
        "commit": str(git.get("commit", "unknown"))[:12] + " (changed)" * bool(git.get("dirty")),
        "version": run.results.get("versions", {}).get("kikitori", ""),
        "started": str(run.results.get("started", ""))[:16].replace("T", " "),
        "device": run.results.get("cost", {}).get("device", ""),
        "command": exact_command(run),
        "guard": guard_rows(run.results.get("guard", [])),
        "guard_legend": guard_legend(run.results.get("guard", [])),
        "guard_words": _verdicts(run.results.get("guard", [])),
    }


def _verdicts(figures: Sequence[Mapping[str, Any]]) -> str:
    """How many figures of the guard are worse and better than the base's."""
    counts = [f"{sum(row['verdict'] == verdict for row in figures)} {verdict}" for verdict in ("worse", "better")]
    return f"of {len(figures)} figures {' and '.join(counts)} than the base's"


def _failure(run: Run) -> dict[str, Any]:
    """A row of the list of runs that are not completed."""
    log = _here(run.log) if run.log else ""
    command = exact_command(run) if run.overrides else ""
    reason = run.reason.replace(f"{Path.cwd()}/", "")
    return {"name": run.name, "status": run.status, "reason": reason, "log": log, "command": command}


def exact_command(run: Run) -> str:
    """The command that made this run, with its folder."""
    own = [word for word in run.overrides if not re.match(r"(resume|hydra\.run\.dir)=", word)]
    folder = _here(run.folder)
    plain = re.fullmatch(r"[\w./+-]+", folder)
    where = f"hydra.run.dir={folder}" if plain else override("hydra.run.dir", folder)
    return shlex.join(["kikitori", run.results.get("command", "train"), *own, where])


def _here(path: Path) -> str:
    """A path relative to the current folder if it lies in it, so that the page shows no path of this machine."""
    here = Path.cwd()
    return path.relative_to(here).as_posix() if here in path.parents else str(path)
