"""Selects the clips that a run uses, with a reason for each one left out; too many of them stop the run."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.corpora.types import OUTSIDE_DATASET, SPLITS, Clip, Decoded, Reason, Reject, Split
from kikitori.model.processor import Processor, control_token_in
from kikitori.runtime.errors import DataError
from kikitori.runtime.rng import seeded_sample

# Errors in the audio cache that have a reason of their own; all others are "undecodable".
REASONS: dict[str, Reason] = {
    "missing": "missing",
    "the file is cut short": "cut short",
    OUTSIDE_DATASET: "outside the corpus",
}
# What a transcript should not hold, although it can be used: left over from a web page, or from a wrong encoding.
DOUBTFUL = {
    "HTML (such as &quot; or <br>)": re.compile(r"&(?:[A-Za-z]{2,8}|#\d{1,7}|#x[\dA-Fa-f]{1,6});|</?[A-Za-z][^<>]*>"),
    "U+FFFD in place of a character": re.compile("\ufffd"),
}
# By how much a clip may be shorter than its corpus lists: a corpus counts whole mp3 frames (24 or 36 ms), and decoders
# skip the encoder's padding before the sound.
SHORTFALL_S = 0.1


@dataclass(frozen=True)
class FilterRules:
    """The conditions for using a clip.

    min_duration_s, max_duration_s: seconds; None for the model's window. silence_dbfs: peak level in dB relative to
    full scale, below which a clip is silent. max_reject_rate: share of the clips that may be left out.
    allow_shared_speakers, allow_shared_clips: whether splits may have speakers or clips in common.
    """

    min_duration_s: float
    max_duration_s: float | None
    silence_dbfs: float
    max_reject_rate: float
    allow_shared_speakers: bool
    allow_shared_clips: bool


def take_subset(clips: Sequence[Clip], counts: Mapping[str, int | None], sample: bool, seed: int) -> list[Clip]:
    """The first n clips of each split, or a seeded sample of n in the corpus's order; None keeps all."""
    kept: list[Clip] = []
    for split in SPLITS:
        rows = [clip for clip in clips if clip.split == split]
        n = counts.get(split)
        if n is not None and n < len(rows):
            rows = [rows[i] for i in (seeded_sample(len(rows), n, seed) if sample else range(n))]
        kept += rows
    return kept


def select(
    clips: Iterable[Clip], decoded: Mapping[str, Decoded], processor: Processor | None, rules: FilterRules
) -> tuple[list[Clip], list[Reject]]:
    """Divides the clips of one split into those to use and those to leave out.

    Without a processor, windows and tokens are not checked. Training clips longer than the window are left out; longer
    validation and test clips are kept, because a score must not depend on a choice of clips.
    """
    kept: list[Clip] = []
    rejects: list[Reject] = []
    first: dict[str, str] = {}
    for clip in clips:
        facts = decoded[clip.name]
        fault = _audio_fault(facts, clip, processor, rules) or _text_fault(clip, processor)
        if fault is None and facts.digest in first:
            fault = Reject(clip.name, clip.split, "duplicate", f"same audio as {first[facts.digest]}")
        if fault is None:
            first[facts.digest] = clip.name
            kept.append(clip)
        else:
            rejects.append(fault)
    return kept, rejects


def _audio_fault(facts: Decoded, clip: Clip, processor: Processor | None, rules: FilterRules) -> Reject | None:
    seconds = facts.samples / SAMPLE_RATE
    longest = min(rules.max_duration_s or np.inf, processor.window_s if processor else np.inf)
    if facts.error:
        return Reject(clip.name, clip.split, REASONS.get(facts.error, "undecodable"), facts.error)
    if facts.samples == 0:
        return Reject(clip.name, clip.split, "empty", "no samples")
    if clip.duration_s and seconds < clip.duration_s - SHORTFALL_S:
        detail = f"{seconds:.2f} s of the {clip.duration_s:.2f} s that the corpus lists"
        return Reject(clip.name, clip.split, "cut short", detail)
    if facts.peak < 10 ** (rules.silence_dbfs / 20):
        return Reject(clip.name, clip.split, "silent", f"peak {facts.peak:.2g}")
    if seconds < rules.min_duration_s:
        return Reject(clip.name, clip.split, "too short", f"{seconds:.2f} s, under {rules.min_duration_s} s")
    if seconds > longest and clip.split == "train":
        return Reject(clip.name, clip.split, "too long", f"{seconds:.2f} s, over {longest} s")
    return None


def _text_fault(clip: Clip, processor: Processor | None) -> Reject | None:
    if not clip.text:
        return Reject(clip.name, clip.split, "empty transcript")
    if token := control_token_in(clip.text, processor):
        return Reject(clip.name, clip.split, "control token", f"{token} is no text; remove it from the transcript")
    # A text has at most as many tokens as bytes, so few texts have to be tokenized.
    if processor and len(clip.text.encode()) > processor.max_label_tokens - len(processor.prefix) - 1:
        tokens = len(processor.encode(clip.text))
        if tokens > processor.max_label_tokens:
            return Reject(clip.name, clip.split, "too many tokens", f"{tokens}, over {processor.max_label_tokens}")
    return None


def doubtful_texts(clips: Iterable[Clip]) -> dict[str, list[str]]:
    """The names of the clips whose transcripts hold something doubtful, by what it is."""
    found: dict[str, list[str]] = {}
    for clip in clips:
        for what, pattern in DOUBTFUL.items():
            if pattern.search(clip.text):
                found.setdefault(what, []).append(clip.name)
    return found


def check_rate(rows: int, rejects: Sequence[Reject], max_reject_rate: float) -> None:
    """Raises DataError if more than the allowed share of the rows was left out."""
    if len(rejects) > max_reject_rate * rows:
        reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(r.reason for r in rejects).most_common())
        first = rejects[0]
        raise DataError(
            f"{len(rejects)} of {rows} clips would be left out ({reasons}), over the allowed share of "
            f"data.max_reject_rate={max_reject_rate}.\n"
            f"  The first: {first.name}, {first.reason}. All are in rejects.jsonl in the run's folder. "
            "Repair the corpus, or raise data.max_reject_rate."
        )


def check_split_leakage(splits: Mapping[Split, Sequence[tuple[Clip, Decoded]]], rules: FilterRules) -> None:
    """Raises DataError if two splits have a speaker or a clip in common, which would make scores too optimistic."""
    rows = [(split, clip, facts) for split, pairs in splits.items() for clip, facts in pairs]
    shared_clips = _shared((facts.digest, split) for split, _, facts in rows)
    if shared_clips and not rules.allow_shared_clips:
        name = next(clip.name for _, clip, facts in rows if facts.digest in shared_clips)
        raise DataError(
            f"{len(shared_clips)} clips are in two splits, such as {name}. Remove them from one, or pass "
            "data.allow_shared_clips=true."
        )
    shared_speakers = _shared((clip.speaker, split) for split, clip, _ in rows if clip.speaker)
    if shared_speakers and not rules.allow_shared_speakers:
        raise DataError(
            f"{len(shared_speakers)} speakers are in two splits. Remove them from one, or pass "
            "data.allow_shared_speakers=true."
        )


def _shared(pairs: Iterable[tuple[str, str]]) -> set[str]:
    splits: dict[str, str] = {}
    return {value for value, split in pairs if splits.setdefault(value, split) != split}
