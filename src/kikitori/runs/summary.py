"""The summary of one run: the table printed last, its lines in words, and tables complete at any terminal width."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from kikitori.guard.table import guard_legend, guard_lines, guard_rows
from kikitori.runs.results import FULL_WINDOW
from kikitori.runtime.console import Terminal, duration
from kikitori.runtime.paths import shown_path
from kikitori.runtime.text import printable

# What begins markup, a cell, a link or an address that becomes one; a backslash before it makes it text.
MARKUP = re.compile(r"[\\|`]|!(?=\[)|\](?=[(\[:])|(?<=:)/(?=/)|(?<=www)\.", re.IGNORECASE)
# Columns: the width of output that goes to a file, where nothing is folded.
UNFOLDED = 10_000


def rows(results: Mapping[str, Any]) -> list[list[str]]:
    """The table of a run, header first: rates in percent, 95 % intervals in brackets."""
    scores = {stage: with_languages(rates) for stage, rates in results["scores"].items()}
    if "before" not in scores or "after" not in scores:
        (stage,) = scores
        table = [["split", "clips", "CER %", "WER %", "raw CER %", "raw WER %"]]
        for split, score in scores[stage].items():
            rates = [rate_cell(score, "cer"), rate_cell(score, "wer")]
            table.append([split, str(score["clips"]), *rates, percent(score["cer_raw"]), percent(score["wer_raw"])])
        return table
    table = [["split", "clips", "CER % before", "CER % after", "CER change", "WER % before", "WER % after"]]
    for split, after in scores["after"].items():
        before, change = scores["before"][split], scores["change"][split]
        cells = [rate_cell(before, "cer"), rate_cell(after, "cer"), rate_cell(change, "cer", sign="+")]
        table.append([split, str(after["clips"]), *cells, rate_cell(before, "wer"), rate_cell(after, "wer")])
    return table


def with_languages(scores: Mapping[str, Any], between: str = " ") -> dict[str, Any]:
    """The rates of each split, followed by those of its languages if it has several, as `test ja`."""
    found: dict[str, Any] = {}
    for split, rates in scores.items():
        found[split] = rates
        found |= {f"{split}{between}{code}": of for code, of in rates.get("languages", {}).items()}
    return found


def title(results: Mapping[str, Any]) -> str:
    """The model and the corpus: whisper-base on Common Voice."""
    return f"{results['model']['name']} on {results['data']['corpus']}"


def cost_line(cost: Mapping[str, Any]) -> str:
    """What a run cost, in words: preparation 2 s, training 4 min, scoring 42 s, 33.3 clips/s, ..."""
    steps = {"prepare_s": "preparation", "fit_s": "training", "evaluate_s": "scoring", "guard_s": "guard"}
    parts = [f"{name} {duration(cost[key])}" for key, name in steps.items() if cost.get(key) is not None]
    if cost.get("train_clips_per_s") is not None:
        parts.append(f"{cost['train_clips_per_s']:.1f} training clips/s")
    if cost.get("peak_memory_gb") is not None:
        parts.append(f"peak memory {cost['peak_memory_gb']:.1f} GB")
    if cost.get("device"):
        parts.append(f"{cost.get('devices', 1)} × {cost['device']}")
    return ", ".join(parts)


def disk_line(results: Mapping[str, Any]) -> str:
    """What a run's folder takes: 1.9 GB: checkpoints 1.7 GB, model 290 MB; empty if that was not measured."""
    disk = results.get("disk", {})
    parts = [f"{name} {size(count)}" for name, count in disk.items()]
    return f"{size(sum(disk.values()))}: {', '.join(parts)}" if parts else ""


def size(count: float) -> str:
    """Bytes in words: 512 B, 12 kB, 290 MB, 1.7 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def print_results(results: Mapping[str, Any], folder: Path) -> None:
    """Prints the table of a run and its folder."""
    console = terminal()
    console.print(Text(title(results)), soft_wrap=True)
    if results["scores"]:
        header, *body = rows(results)
        # Where they do not fit next to each other: CER and WER, or rates of normalised and of raw text.
        groups = [header[2:5], header[5:]] if "CER change" in header else [header[2:4], header[4:]]
        columns = dict(zip(header, zip(*body, strict=True), strict=True))
        for table in fit(Grid(header[:2], groups, columns, left=["split"]), console):
            console.print(table)
    elif figures := guard_rows(results.get("guard", [])):
        header, *body = figures
        columns = dict(zip(header, zip(*body, strict=True), strict=True))
        for table in fit(Grid(header[:3], [header[3:6], header[6:]], columns, left=header[:3]), console):
            console.print(table)
        console.print(Text(guard_legend(results["guard"])))
    for line in remarks(results):
        console.print(Text(line))
    for split, facts in results["data"]["splits"].items():
        if facts["clips_over_window"]:
            longer = f"{facts['clips_over_window']} {split} clips are longer than the model's window"
            console.print(Text(f"{longer}; only their first {results['model']['window_s']:g} s are read"))
    disk = f" ({line})" if (line := disk_line(results)) else ""
    console.print(Text(f"Everything is in {shown_path(folder)}{disk}"), soft_wrap=True)


def remarks(results: Mapping[str, Any]) -> list[str]:
    """The lines below the table of scores."""
    guard = [*guard_lines(results.get("guard", [])), *long_recordings_lines(results)]
    if not results["scores"]:
        return [*guard, *notes_of(results)]
    rates = [*average_lines(results), *reading_lines(results), *full_window_lines(results), *cut_lines(results)]
    return [*rates, *guard, *notes_of(results)]


def average_lines(results: Mapping[str, Any]) -> list[str]:
    """Which mixture was saved; that of alpha 0 is the base, so nothing was gained."""
    if not (found := results.get("averaged")):
        return []
    alpha = found["alpha"]
    what = "the base itself: no mixture was better on validation" if alpha == 0 and _is_chosen(results) else ""
    models = f"the mean of {found['runs']} models" if found["runs"] > 1 else "the tuned model"
    what = what or f"{alpha:g} of {models} and {1 - alpha:g} of the base"
    return [f"before: the base; after, and saved: alpha {alpha:g} in {found['reading']}, {what}"]


def _is_chosen(results: Mapping[str, Any]) -> bool:
    """Whether validation chose the mixture, rather than the user."""
    return results["config"].get("alpha") is None


def long_recordings_lines(results: Mapping[str, Any]) -> list[str]:
    """How `kikitori transcribe` reads long recordings with the model, and why; no line where no guard found that."""
    if not (found := results.get("long_recordings")):
        return []
    segments, reason = found["segments"], found["reason"]
    if results.get("command") != "guard":  # the other processes of a run do not have it
        return [f"kikitori transcribe reads long recordings by {segments}: {reason}"]
    # It changes no model's folder.
    return [f"Long recordings are best read by {segments} (kikitori transcribe --segments {segments}): {reason}"]


def full_window_rates(results: Mapping[str, Any]) -> str:
    """The rates in the full window of a model that was trained in shorter ones; empty for any other model."""
    scores = results["scores"].get(FULL_WINDOW, {})
    named = with_languages(scores).items()
    rates = (f"{split} CER {rate_cell(score, 'cer')} % ({score['clips']} clips)" for split, score in named)
    return ", ".join(rates)


def full_window_lines(results: Mapping[str, Any]) -> list[str]:
    """The same as a sentence; no line where there are no such rates."""
    rates = full_window_rates(results)
    return [f"In the full window, as stock tools read: {rates}"] if rates else []


def cut_lines(results: Mapping[str, Any]) -> list[str]:
    """How many transcripts of each stage and split were cut off; no line where none was."""
    words = {"before": "before training ", "after": "after training ", FULL_WINDOW: "in the full window "}
    stages = []
    for stage, scores in results["scores"].items():
        cut = [f"{split} {score['cut']} of {score['clips']}" for split, score in scores.items() if score.get("cut")]
        if cut:
            stages.append(f"{words.get(stage, '')}{', '.join(cut)}")
    limits = "generation.max_new_tokens or generation.max_tokens_per_s"
    return [f"Transcripts cut off by {limits}: {'; '.join(stages)}"] if stages else []


def reading_lines(results: Mapping[str, Any]) -> list[str]:
    """The lenient rate of Japanese as a sentence, before and after training; no line where there is none."""
    wanted = ("before", "after", "evaluated")
    stages = [with_languages(scores) for stage, scores in results["scores"].items() if stage in wanted]
    rates = {split: [scores[split].get("cer_reading") for scores in stages] for split in stages[-1]}
    parts = [f"{split} {' → '.join(map(percent, of))} %" for split, of in rates.items() if None not in of]
    words = "CER of readings, in which kana, kanji and digits of the same words are equal"
    return [f"{words}: {', '.join(parts)}"] if parts else []


def notes_of(results: Mapping[str, Any]) -> list[str]:
    """What a reader of the scores should know about the language and task of the model."""
    model = results["model"]
    poor = "A translation is scored by its wording: CER and WER cannot tell a good one from a bad one"
    return [*model.get("notes", []), *([poor] if model.get("task") == "translate" else [])]


def plain_text(text: str) -> str:
    """A text of any origin in one line of Markdown, in which nothing of it is markup or becomes a link."""
    return MARKUP.sub(r"\\\g<0>", printable(" ".join(text.split()))).replace("<", "&lt;")


def percent(fraction: float, sign: str = "") -> str:
    """A fraction in percent with one digit after the point."""
    return f"{100 * fraction:{sign}.1f}"


def rate_cell(score: Mapping[str, Any], rate: str, sign: str = "") -> str:
    """A rate and its 95 % interval in percent."""
    low, high = score[f"{rate}_ci95"]
    return f"{percent(score[rate], sign)} [{percent(low, sign)}, {percent(high, sign)}]"


def terminal() -> Console:
    """The terminal; a pipe or a file has no width, so nothing is folded there."""
    console = Terminal()
    return console if console.is_terminal else Terminal(width=UNFOLDED)


@dataclass(frozen=True)
class Grid:
    """Cells under named columns, which `fit` draws as one table or several.

    keys: the first columns, which name a row and are repeated in each table. groups: the other columns, those that
    belong together in one group. columns: the cells by column. left: left-justified columns. bold: rows in bold.
    """

    keys: Sequence[str]
    groups: Sequence[Sequence[str]]
    columns: Mapping[str, Sequence[str]]
    left: Sequence[str] = ()
    bold: Sequence[bool] = ()

    def draw(self, names: Sequence[str], framed: bool) -> Table:
        """A table of the named columns. A cell that is still too wide is folded, never cut."""
        table = Table() if framed else Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in names:
            table.add_column(Text(name), justify="left" if name in self.left else "right", overflow="fold")
        for i, cells in enumerate(zip(*(self.columns[name] for name in names), strict=True)):
            table.add_row(*map(Text, cells), style="bold" if self.bold and self.bold[i] else None)
        return table

    def stacked(self) -> "Grid":
        """The same with each interval on a line of its own below the value."""
        columns = {name: [cell.replace(" [", "\n[") for cell in cells] for name, cells in self.columns.items()}
        return replace(self, columns=columns)

    def numbered(self) -> tuple["Grid", Table]:
        """The same with numbers for keys, and the list of what they stand for."""
        legend = Table.grid(padding=(0, 2, 0, 0))
        rows = list(zip(*(self.columns[key] for key in self.keys), strict=True))
        numbers = [f"#{i}" for i in range(1, len(rows) + 1)]
        for number, cells in zip(numbers, rows, strict=True):
            name = cells[0] if len(cells) == 1 else ", ".join(map("=".join, zip(self.keys, cells, strict=True)))
            legend.add_row(number, Text(name, overflow="fold"))
        return replace(self, keys=["#"], columns={**self.columns, "#": numbers}), legend


def fit(grid: Grid, console: Console) -> list[RenderableType]:
    """Tables that show every cell uncut at the console's width.

    The first that fits of: one table; one without its frame; several tables, each of one or more groups of columns,
    with and without frames, with intervals next to and below their values. Names that are too long to be repeated in
    each table are numbered.
    """

    def width(of: Grid, names: Sequence[str], framed: bool) -> int:
        return Measurement.get(console, console.options.update(max_width=UNFOLDED), of.draw(names, framed)).maximum

    names = [*grid.keys, *(name for group in grid.groups for name in group)]
    for framed in (True, False):
        if width(grid, names, framed) <= console.width:
            return [grid.draw(names, framed)]
    legend: list[RenderableType] = []
    if width(grid, grid.keys, False) > console.width // 2:
        grid, listed = grid.numbered()
        legend = [listed]
    singles = replace(grid.stacked(), groups=[[name] for group in grid.groups for name in group])
    attempts = [(of, framed) for of in (grid, grid.stacked()) for framed in (True, False)]
    for of, framed in [*attempts, (singles, False)]:
        parts = [list(of.groups[0])]
        for group in of.groups[1:]:
            if width(of, [*of.keys, *parts[-1], *group], framed) <= console.width:
                parts[-1] += group
            else:
                parts.append(list(group))
        if of is singles or all(width(of, [*of.keys, *part], framed) <= console.width for part in parts):
            break
    drawn: list[RenderableType] = [of.draw([*of.keys, *part], framed) for part in parts]
    blank = [] if framed else [Text("")]
    return legend + [item for table in drawn for item in (*blank, table)]
