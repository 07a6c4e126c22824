"""What a training changed, clip by clip, those that lost most first; and the kinds of errors."""

import base64
import io
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import soundfile

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.compare.leaderboard import SPLITS, Leaderboard
from kikitori.data.audio_cache import AudioCache
from kikitori.metrics.alignment import error_types, spans
from kikitori.metrics.normalizer import normalise
from kikitori.runs.reader import Run
from kikitori.runtime.errors import DataError
from kikitori.runtime.paths import cache_folder

# What one page can hold: it must open on a telephone.
MOST_RUNS = 24
MOST_CLIPS = 50
MOST_AUDIO = 40
MOST_ERRORS = 30


def of_table(table: Leaderboard, most_audio: int = MOST_AUDIO) -> dict[str, Any]:
    """The first runs' clips by split, and audio for the clips that stand highest in any of them."""
    runs = [run for run in table.runs if any(run.predictions_path(split).exists() for split in SPLITS)][:MOST_RUNS]
    ranks = {id(run): rank for rank, row in enumerate(table.rows, 1) for run in row.runs}
    told = [
        {"run": f"#{ranks[id(run)]} {run.name}", "split": split, **of_run(run, split)}
        for run in runs
        for split in SPLITS
        if run.predictions_path(split).exists()
    ]
    audio: dict[str, dict[str, str]] = {}
    silence = ""
    for split in SPLITS:
        clips = _topmost([part["clips"] for part in told if part["split"] == split], most_audio // len(SPLITS))
        # Any run that names a store which is here will do: all were scored on the same clips.
        for run in runs:
            audio[split], silence = audio_data_urls(run, split, clips)
            if audio[split]:
                break
    return {"runs": told, "audio": audio, "silence": silence, "left_out": len(table.runs) - len(runs)}


def of_run(run: Run, split: str) -> dict[str, Any]:
    """The clips that lost most, and the errors before and after; `before` is absent where nothing was trained."""
    language = run.results.get("data", {}).get("language", "ja")
    after = run.predictions(split)
    before = {row["clip"]: row for row in run.predictions(split, "before")} if run.stage == "after" else {}
    ordered = sorted(after, key=lambda row: (_lost(before.get(row["clip"]), row), row["cer_edits"]), reverse=True)
    errors = {"after": _errors(after, language)}
    if before:
        errors["before"] = _errors(list(before.values()), language)
    clips = [_clip(before.get(row["clip"]), row, language) for row in ordered[:MOST_CLIPS]]
    return {"clips": clips, "total": len(after), "errors": errors}


def _lost(before: dict[str, Any] | None, after: dict[str, Any]) -> int:
    """Edits that training added; what CER counts, so that a long clip is not hidden by a short one."""
    return after["cer_edits"] - (before["cer_edits"] if before else 0)


def _clip(before: dict[str, Any] | None, after: dict[str, Any], language: str) -> dict[str, Any]:
    length = max(1, after["cer_length"])
    row = {"clip": after["clip"], "reference": after["reference"], "after": _pieces(after, language)}
    row["cer_after"] = after["cer_edits"] / length
    if before:
        row |= {"before": _pieces(before, language), "cer_before": before["cer_edits"] / length}
    return row


def _pieces(row: dict[str, Any], language: str) -> list[list[str]]:
    """Spans of the text as it is scored, edits that touch made one: うどん for ピザ, not a kana here and there."""
    pieces: list[list[str]] = []
    for equal, group in groupby(
        spans(normalise(row["reference"], language), normalise(row["hypothesis"], language)),
        key=lambda span: span.kind == "equal",
    ):
        parts = list(group)
        said, heard = ("".join(texts) for texts in zip(*((p.reference, p.hypothesis) for p in parts), strict=True))
        kind = "equal" if equal else "delete" if not heard else "insert" if not said else "substitute"
        pieces.append([kind, said, heard if equal else _shortened(heard)])
    return pieces


def _shortened(text: str, most: int = 200) -> str:
    """A looping model's thousandth character tells nobody anything."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most} more)"


def _errors(rows: Sequence[dict[str, Any]], language: str) -> dict[str, Any]:
    errors = error_types([row["reference"] for row in rows], [row["hypothesis"] for row in rows], language)
    return {**errors, "rows": errors["rows"][:MOST_ERRORS]}


def _topmost(tables: Sequence[Sequence[dict[str, Any]]], most: int) -> list[str]:
    """The first clips of every table, then the second ones, until there are enough."""
    return list(dict.fromkeys(_in_turn(tables)))[:most]


def _in_turn(tables: Sequence[Sequence[dict[str, Any]]]) -> Iterator[str]:
    for place in range(max(map(len, tables), default=0)):
        for table in tables:
            if place < len(table):
                yield table[place]["clip"]


def audio_data_urls(run: Run, split: str, clips: Sequence[str]) -> tuple[dict[str, str], str]:
    """A data: address for each clip, and why there is none where there is none."""
    name = run.results.get("data", {}).get("splits", {}).get(split, {}).get("store")
    if not name:
        return {}, "results.json names no store of decoded clips"
    path = cache_folder() / "store" / str(name)
    if not path.is_file():
        return {}, f"the store of decoded clips, {path.name}, is not in this machine's cache"
    try:
        store = AudioCache(path)
    except DataError as error:
        return {}, str(error)
    return {clip: encode(store, clip) for clip in clips if clip in store.decoded}, ""


def encode(store: AudioCache, clip: str) -> str:
    """One clip as MP3: every browser plays it, at a few kB a second."""
    file = io.BytesIO()
    soundfile.write(file, store.pcm(clip), SAMPLE_RATE, format="MP3", compression_level=0.9)
    return f"data:audio/mpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
