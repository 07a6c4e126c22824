"""Transcripts before and after training, clip by clip, those that got worse first, and the types of errors."""

import base64
import io
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import soundfile

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.compare.leaderboard import SPLITS, Leaderboard
from kikitori.data.audio_cache import AudioCache
from kikitori.metrics.alignment import error_types, spans, word_errors
from kikitori.metrics.normalizer import normalise
from kikitori.runs.reader import Run
from kikitori.runtime.errors import DataError
from kikitori.runtime.files import is_regular
from kikitori.runtime.paths import cache_folder

# Limits that keep the page small enough for a phone.
MAX_RUNS = 24
MAX_CLIPS = 50
MAX_AUDIO = 40
MAX_ERRORS = 30


def clips_of_table(table: Leaderboard, max_audio: int = MAX_AUDIO) -> dict[str, Any]:
    """The clips of the first runs by split, and audio for the clips at the top of any of their tables."""
    runs = [run for run in table.runs if any(is_regular(run.predictions_path(split)) for split in SPLITS)][:MAX_RUNS]
    ranks = {id(run): rank for rank, row in enumerate(table.rows, 1) for run in row.runs}
    parts = [
        {"run": f"#{ranks[id(run)]} {run.name}", "split": split, **clips_of_run(run, split)}
        for run in runs
        for split in SPLITS
        if is_regular(run.predictions_path(split))
    ]
    audio: dict[str, dict[str, str]] = {}
    no_audio = ""
    for split in SPLITS:
        clips = _topmost([part["clips"] for part in parts if part["split"] == split], max_audio // len(SPLITS))
        # All runs were scored on the same clips, so the audio of any of them will do.
        for run in runs:
            audio[split], no_audio = audio_data_urls(run, split, clips)
            if audio[split]:
                break
    return {"runs": parts, "audio": audio, "no_audio": no_audio, "left_out": len(table.runs) - len(runs)}


def clips_of_run(run: Run, split: str) -> dict[str, Any]:
    """The clips by how much worse they got, and the types of errors; `before` is missing where nothing was trained."""
    after = run.predictions(split)
    before = {row["clip"]: row for row in run.predictions(split, "before")} if run.stage == "after" else {}
    ordered = sorted(
        after, key=lambda row: (_added_edits(before.get(row["clip"]), row), row["cer_edits"]), reverse=True
    )
    errors = {"after": _errors(after, [run.language_of(row) for row in after])}
    if before:
        errors["before"] = _errors(list(before.values()), [run.language_of(row) for row in before.values()])
    clips = [_clip(before.get(row["clip"]), row, run.language_of(row)) for row in ordered[:MAX_CLIPS]]
    return {"clips": clips, "total": len(after), "errors": errors}


def _added_edits(before: dict[str, Any] | None, after: dict[str, Any]) -> int:
    """Edits that training added. A count and not a rate, so that short clips do not hide long ones."""
    return after["cer_edits"] - (before["cer_edits"] if before else 0)


def _clip(before: dict[str, Any] | None, after: dict[str, Any], language: str) -> dict[str, Any]:
    length = max(1, after["cer_length"])
    row = {"clip": after["clip"], "reference": after["reference"], "after": _pieces(after, language)}
    row["cer_after"] = after["cer_edits"] / length
    if before:
        row |= {"before": _pieces(before, language), "cer_before": before["cer_edits"] / length}
    return row


def _pieces(row: dict[str, Any], language: str) -> list[list[str]]:
    """[kind, reference, output] of spans of the normalised texts. Adjacent edits are one span: うどん for ピザ."""
    pieces: list[list[str]] = []
    for equal, group in groupby(
        spans(normalise(row["reference"], language), normalise(row["hypothesis"], language)),
        key=lambda span: span.kind == "equal",
    ):
        parts = list(group)
        reference, output = (
            "".join(texts) for texts in zip(*((p.reference, p.hypothesis) for p in parts), strict=True)
        )
        kind = "equal" if equal else "delete" if not output else "insert" if not reference else "substitute"
        pieces.append([kind, reference, output if equal else _shortened(output)])
    return pieces


def _shortened(text: str, limit: int = 200) -> str:
    """The start of a text, which may be endless if a model repeats itself."""
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit} more)"


def _errors(rows: Sequence[dict[str, Any]], languages: Sequence[str]) -> dict[str, Any]:
    references, hypotheses = [row["reference"] for row in rows], [row["hypothesis"] for row in rows]
    errors = error_types(references, hypotheses, languages)
    words = word_errors(references, hypotheses, languages)
    words = [(reference, _shortened(hypothesis, 60), count) for reference, hypothesis, count in words[:MAX_ERRORS]]
    return {**errors, "rows": errors["rows"][:MAX_ERRORS], "words": words}


def _topmost(tables: Sequence[Sequence[dict[str, Any]]], limit: int) -> list[str]:
    """The first clips of all tables, then the second ones, up to the limit."""
    return list(dict.fromkeys(_in_turn(tables)))[:limit]


def _in_turn(tables: Sequence[Sequence[dict[str, Any]]]) -> Iterator[str]:
    for i in range(max(map(len, tables), default=0)):
        for table in tables:
            if i < len(table):
                yield table[i]["clip"]


def audio_data_urls(run: Run, split: str, clips: Sequence[str]) -> tuple[dict[str, str], str]:
    """A data: URL for each clip, or the reason why there is no audio."""
    name = run.results.get("data", {}).get("splits", {}).get(split, {}).get("store")
    if not name:
        return {}, "results.json names no cache of decoded clips"
    path = cache_folder() / "store" / name
    if not path.is_file():
        return {}, f"the decoded clips, {path.name}, are not in this machine's cache"
    try:
        cache = AudioCache(path)
        return {clip: encode_mp3(cache, clip) for clip in clips if clip in cache.decoded}, ""
    except DataError as error:
        return {}, str(error)


def encode_mp3(cache: AudioCache, clip: str) -> str:
    """A clip as a data: URL of an MP3, which every browser plays and which takes a few kB per second."""
    file = io.BytesIO()
    soundfile.write(file, cache.pcm(clip), SAMPLE_RATE, format="MP3", compression_level=0.9)
    return f"data:audio/mpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
