"""results.md: what one run did, with which result and at what cost, to be read or pasted."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kikitori.guard.curve import curve_rows
from kikitori.guard.table import guard_legend, guard_rows
from kikitori.runs.results import command_line, predictions_file, read_predictions
from kikitori.runs.summary import (
    cost_line,
    disk_line,
    percent,
    plain_text,
    remarks,
    rows,
    title,
)
from kikitori.runtime.errors import DataError
from kikitori.runtime.rng import seeded_sample

# Rows of the learning curve and of the examples, at most.
CURVE_ROWS, EXAMPLES = 12, 5
# Characters of a transcript: of one that repeats itself, the rest says nothing.
LONGEST = 160


def markdown(results: Mapping[str, Any], folder: Path | None = None) -> str:
    """The page. folder: of the run, whose transcripts it gives examples of."""
    parts = [f"# {plain_text(title(results))}"]
    if results["scores"]:
        parts += [_table(rows(results))]
    if curve := learning_curve(results):
        parts += ["## Validations", _table(curve)]
    if curve := curve_rows(results.get("curve", []), results.get("averaged", {})):
        parts += ["## Mixtures of the base (alpha 0) and the tuned models (alpha 1)", _table(curve)]
    if figures := guard_rows(results.get("guard", [])):
        parts += ["## Guard", _table(figures), guard_legend(results["guard"])]
    if folder and results["scores"] and (found := examples_table(results, folder)):
        parts += ["## Examples", found]
    parts += [
        "## Run",
        "\n".join(f"- {name}: {text}" if name else f"- {text}" for name, text in facts(results) if text),
    ]
    return "\n\n".join(parts) + "\n"


def learning_curve(results: Mapping[str, Any]) -> list[list[str]]:
    """The validations, header first; of many, some at equal distances with the last and the scored one."""
    history, chosen = results.get("history", []), results.get("checkpoint", {}).get("best_step")
    if not history:
        return []
    every = -(-len(history) // CURVE_ROWS)
    shown = [row for i, row in enumerate(reversed(history)) if i % every == 0 or row["step"] == chosen][::-1]
    table = [["step", "training loss", "validation loss", "CER %", "WER %", ""]]
    for row in shown:
        losses = [f"{row[key]:.4g}" if key in row else "" for key in ("train/loss", "val/loss")]
        rates = [percent(row[key]) if key in row else "" for key in ("val/cer", "val/wer")]
        table.append([str(row["step"]), *losses, *rates, "scored and saved" if row["step"] == chosen else ""])
    return table


def examples_table(results: Mapping[str, Any], folder: Path) -> str:
    """A seeded sample of clips: what was said and what was transcribed, without their names; empty without any."""
    scores = results["scores"]
    stages = ("before", "after") if "after" in scores else tuple(scores)[:1]
    split = next((split for split in ("validation", "test", "train") if split in scores[stages[-1]]), "")
    try:
        read = [
            {row["clip"]: row for row in read_predictions(predictions_file(folder, split, stage))} for stage in stages
        ]
    except DataError:
        return ""
    clips = sorted(set.intersection(*map(set, read)))
    chosen = [clips[i] for i in seeded_sample(len(clips), EXAMPLES, seed=0)]
    table = [[read[-1][clip]["reference"], *(rows_of[clip]["hypothesis"] for rows_of in read)] for clip in chosen]
    header = [f"{split} reference", *(stages if len(stages) > 1 else ["transcript"])]
    return _table([header, *table]) if table else ""


def facts(results: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """What the result depends on and what it cost, as names and words; words are empty where there is nothing."""
    data, scoring, model = results["data"], results["scoring"], results["model"]
    splits = ", ".join(f"{name} {_clips(s)}, {s['seconds']:.0f} s" for name, s in data["splits"].items())
    rejects = ", ".join(f"{n} {reason}" for reason, n in data["rejects"].items()) or "none"
    yield "Command", f"`{command_line(results)}`"
    yield "Time", when(results)
    yield "Training", training(results)
    yield "Corpus", f"{plain_text(data['corpus'])} ({splits}); left out: {rejects}"
    yield "Model", f"{plain_text(model['name'])}, {model['parameters'] / 1e6:.1f} M parameters"
    yield "Text", f"{scoring['normaliser']}; words: {scoring['segmenter']}; intervals: 95 % bootstrap over clips"
    for note in remarks(results):
        yield "", note
    yield "Precision", str(results.get("precision", ""))
    yield "Cost", cost_line(results["cost"])
    yield "Disk", disk_line(results)
    yield "Code", code(results)


def _clips(facts: Mapping[str, Any]) -> str:
    """The number of clips, and of each of several languages: `30 clips (20 ja, 10 ko)`."""
    languages = facts.get("languages", {})
    several = f" ({', '.join(f'{count} {code}' for code, count in languages.items())})" if len(languages) > 1 else ""
    return f"{facts['clips']} clips{several}"


def when(results: Mapping[str, Any]) -> str:
    """When the run began and ended, and how it was interrupted."""
    times = [str(results[key]).replace("T", " ")[:16] for key in ("started", "finished") if results.get(key)]
    parts = [" to ".join(times)] if times else []
    for pause in results.get("interruptions", []):
        parts.append(f"{pause['reason']}, resumed at step {pause['step']}" if "step" in pause else pause["reason"])
    return "; ".join(parts)


def training(results: Mapping[str, Any]) -> str:
    """The length of a training, and which checkpoint is scored and saved."""
    chosen = results.get("checkpoint")
    if not chosen:
        return ""
    batch, clips = results["config"]["data"]["global_batch_size"], results["data"]["splits"]["train"]["clips"]
    length = f"{chosen['steps']} steps of {batch} clips, {chosen['steps'] / -(-clips // batch):.1f} epochs"
    best = (
        f"step {chosen['best_step']}, the best by {chosen['monitor']}" if chosen.get("best_step") else "the last step"
    )
    return f"{length}; scored and saved is {best}"


def code(results: Mapping[str, Any]) -> str:
    """Versions of the packages, and the commit."""
    git = results.get("git")
    commit = f" at commit {git['commit'][:12]}{' with changes' if git['dirty'] else ''}" if git else ""
    names = [f"{name} {number}" for name, number in results.get("versions", {}).items()]
    return ", ".join([f"{names[0]}{commit}", *names[1:]]) if names else ""


def _table(table: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    header, *body = [[_cell(text) for text in cells] for cells in table]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *body])


def _cell(text: str) -> str:
    """A text as the cell of a table, cut where it is long."""
    line = " ".join(text.split())
    return plain_text(line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…")
