"""What a run folder says of itself: results.json, results.md, predictions, rejects, and the table printed last."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kikitori.runs.results import FULL_WINDOW


def rows(results: Mapping[str, Any]) -> list[list[str]]:
    """The table of a run, header first: rates in percent, 95 % intervals in brackets."""
    scores = results["scores"]
    if "before" not in scores or "after" not in scores:
        (stage,) = scores
        body = [
            [
                s,
                str(v["clips"]),
                *(rate_cell(v, r) for r in ("cer", "wer")),
                percent(v["cer_raw"]),
                percent(v["wer_raw"]),
            ]
            for s, v in scores[stage].items()
        ]
        return [["split", "clips", "CER %", "WER %", "raw CER %", "raw WER %"], *body]
    table = [["split", "clips", "CER % before", "CER % after", "change", "WER % before", "WER % after"]]
    for split, after in scores["after"].items():
        before, change = scores["before"][split], scores["change"][split]
        cells = [rate_cell(before, "cer"), rate_cell(after, "cer"), rate_cell(change, "cer", sign="+")]
        table.append([split, str(after["clips"]), *cells, rate_cell(before, "wer"), rate_cell(after, "wer")])
    return table


def markdown(results: Mapping[str, Any]) -> str:
    """results.md: the table, what it was measured on, and what it cost."""
    header, *body = rows(results)
    lines = ["| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *body]]
    data, scoring, cost = results["data"], results["scoring"], results["cost"]
    splits = ", ".join(f"{name} {s['clips']} clips, {s['seconds']:.0f} s" for name, s in data["splits"].items())
    rejects = ", ".join(f"{n} {reason}" for reason, n in data["rejects"].items()) or "none"
    notes = [
        f"- Corpus: {data['corpus']} ({splits}); left out: {rejects}",
        f"- Model: {results['model']['name']}, {results['model']['parameters'] / 1e6:.1f} M parameters",
        f"- Text: {scoring['normaliser']}; words: {scoring['segmenter']}; intervals: 95 % bootstrap over clips",
        *(f"- {line}" for line in full_window_lines(results)),
        f"- Cost: {', '.join(f'{key} {_number(value)}' for key, value in cost.items() if value is not None)}",
    ]
    return "\n".join([f"# {results['command']}", "", *lines, "", *notes, ""])


def table(results: Mapping[str, Any]) -> Table:
    """The same table for a terminal."""
    header, *body = rows(results)
    drawn = Table(title=f"{results['model']['name']} on {results['data']['corpus']}", title_justify="left")
    for name in header:
        drawn.add_column(name, justify="left" if name == "split" else "right")
    for cells in body:
        drawn.add_row(*cells)
    return drawn


def print_results(results: Mapping[str, Any], folder: Path) -> None:
    """The last thing a run prints: its table and its folder."""
    # A pipe has no width of its own; 80 columns would fold the cells.
    console = Console()
    console = console if console.is_terminal else Console(width=140)
    console.print(table(results))
    for line in full_window_lines(results):
        console.print(line)
    for split, facts in results["data"]["splits"].items():
        if facts["clips_over_window"]:
            console.print(
                f"{facts['clips_over_window']} {split} clips are longer than the window: only its length is read"
            )
    console.print(f"Everything is in {folder}", soft_wrap=True)


def full_window_rates(results: Mapping[str, Any]) -> str:
    """How a model that was trained in windows of its own reads in the whole one; nothing where it was trained there."""
    rates = results["scores"].get(FULL_WINDOW, {})
    told = (f"{split} CER {rate_cell(score, 'cer')} % ({score['clips']} clips)" for split, score in rates.items())
    return ", ".join(told)


def full_window_lines(results: Mapping[str, Any]) -> list[str]:
    """The same for a run's reader, who may not know that stock tools read so."""
    rates = full_window_rates(results)
    return [f"In the whole window, as stock tools read: {rates}"] if rates else []


def percent(fraction: float, sign: str = "") -> str:
    """A fraction in percent; of a fractional point no more than anyone measures."""
    return f"{100 * fraction:{sign}.1f}"


def rate_cell(score: Mapping[str, Any], rate: str, sign: str = "") -> str:
    """A rate and its 95 % interval in percent."""
    low, high = score[f"{rate}_ci95"]
    return f"{percent(score[rate], sign)} [{percent(low, sign)}, {percent(high, sign)}]"


def _number(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)
