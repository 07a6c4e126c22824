"""What a run folder says of itself: results.json, results.md, predictions, rejects, and the table printed last."""

import json
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kikitori.durable import appearing
from kikitori.errors import DataError

PACKAGES = (
    *("kikitori", "torch", "torchaudio", "transformers", "pytorch-lightning", "hydra-core", "datasets", "jiwer"),
    *("sudachipy", "sudachidict-core", "soundfile", "wandb"),
)

# The stage of a model that was trained in other windows, read as stock tools read it.
FULL_WINDOW = "after_in_full_window"


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    return {name: version(name) for name in PACKAGES}


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout that this package runs from, and whether it was changed since; None outside of one."""
    checkout = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != checkout:
            return None  # installed somewhere inside another project's checkout
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", "src", "conf"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Write a value that a person may want to read, too; whoever reads meanwhile finds the old or the new one whole."""
    with appearing(path) as file:
        file.write((json.dumps(value, ensure_ascii=False, indent=2, allow_nan=True) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """An object that `write_json` wrote. Raises DataError where the file is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}; delete it, or its folder") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no object; delete it, or its folder")
    return value


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line; a file is there when all of them are, so that it tells that a step was done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing(path) as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What `write_lines` wrote."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def predictions_file(folder: Path, split: str, stage: str) -> Path:
    """Where a split's transcripts of a stage lie in a run's folder."""
    return folder / "predictions" / f"{split}_{stage}.jsonl"


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
