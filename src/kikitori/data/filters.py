"""Selects the clips that a run uses, with a reason for each one left out; too many of them stop the run."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import quantiles
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from kikitori.audio.formats import CUT_SHORT, TOLERANCE_S
from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.corpora.types import BY_DIVISION, OUTSIDE_DATASET, SPLITS, Clip, Decoded, Reason, Reject, Split
from kikitori.model.processor import Processor, control_token_in
from kikitori.runtime.errors import ConfigError, DataError, check_above_zero, check_fraction, check_not_negative
from kikitori.runtime.rng import seeded_sample

log = logging.getLogger(__name__)
T = TypeVar("T")

# Beginnings of errors in the audio cache that have a reason of their own; all others are "undecodable".
REASONS: dict[str, Reason] = {"missing": "missing", CUT_SHORT: "cut short", OUTSIDE_DATASET: "outside the corpus"}
# What a transcript should not hold, although it can be used: left over from a web page, or from a wrong encoding.
DOUBTFUL = {
    "HTML (such as &quot; or <br>)": re.compile(r"&(?:[A-Za-z]{2,8}|#\d{1,7}|#x[\dA-Fa-f]{1,6});|</?[A-Za-z][^<>]*>"),
    "U+FFFD in place of a character": re.compile("\ufffd"),
}
# A corpus lists durations that are too long throughout if the decoded ones are less than a share of them, which is the
# same one for the middle half of the clips, within a tolerance.
TOO_LONG_SHARE = 0.99
SAME_SHARE = 0.05
# Seconds: the window of every pretrained Whisper, which cannot be changed.
STOCK_WINDOW_S = 30
NONE: Mapping[str, str] = MappingProxyType({})
# What to do about clips of a reason.
REMEDIES: Mapping[Reason, str] = {
    "malformed row": "correct these rows; a text that contains the table's separator must be quoted",
    "not UTF-8": "save the table again as UTF-8 (in Excel: 'CSV UTF-8')",
    "outside the corpus": "copy the files into its folder, or, if you trust the list, pass data.roots=[/their/folder]",
    "missing": "correct the paths, which are relative to the folder of the table (Common Voice: clips/)",
    "undecodable": "download these again if they are damaged, or convert them, such as with ffmpeg -i FILE FILE.flac",
    "cut short": "download or copy these files again; where they are whole, the times that the corpus lists are wrong: "
    "correct them (Common Voice: remove clip_durations.tsv)",
    "empty": "record these again, or remove them",
    "silent": "remove these, or lower data.silence_dbfs",
    "too short": "remove these, or lower data.min_duration_s",
    "too long": "divide these recordings (see data.start_column), or raise the key that is named",
    "empty transcript": "write these transcripts, or remove the rows",
    "control token": "remove it from these transcripts",
    "too many tokens": "divide these recordings (see data.start_column)",
    "duplicate": "keep one row of each recording; parts of one need data.start_column and data.end_column",
}


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

    def __post_init__(self) -> None:
        check_above_zero("data", {} if self.max_duration_s is None else {"max_duration_s": self.max_duration_s})
        check_not_negative("data", {"min_duration_s": self.min_duration_s})
        check_fraction("data", {"max_reject_rate": self.max_reject_rate})


def check_limit(limit: Any) -> None:
    """Raises ConfigError if `limit` is not a mapping as `take_subset` takes it."""
    if not isinstance(limit, Mapping):
        raise ConfigError(f"data.limit={limit}: must be a mapping, such as {{'train': {limit}}}")
    if unknown := sorted(set(limit) - {*SPLITS, "sample"}):
        raise ConfigError(f"data.limit has no {', '.join(unknown)}; its keys are {', '.join(SPLITS)} and sample")
    counts = {f"limit.{split}": limit[split] for split in SPLITS if limit.get(split) is not None}
    check_above_zero("data", counts, whole=True)
    check_not_negative("data", {"limit.sample": int(limit.get("sample", False))}, whole=True)


def take_subset(clips: Sequence[Clip], limit: Mapping[str, Any]) -> list[Clip]:
    """The first n clips of each split, or a sample of n in the corpus's order.

    limit: n by split, None for all; `sample`: False for the first clips, True for a sample, a number for another one.
    The sample depends on nothing else, so that runs with different seeds train and score the same clips.
    """
    sample = limit.get("sample", False)
    kept: list[Clip] = []
    for split in SPLITS:
        rows = [clip for clip in clips if clip.split == split]
        kept += subset(rows, limit.get(split), None if sample is False else 0 if sample is True else sample)
    return kept


def subset(clips: Sequence[Clip], n: int | None, seed: int | None) -> list[Clip]:
    """n clips in their order, None for all: a sample of a seed, or without one the first.

    Of clips of several languages as many of each, as far as there are.
    """
    if n is None or n >= len(clips):
        return list(clips)
    places: dict[str | None, list[int]] = {}
    for place, clip in enumerate(clips):
        places.setdefault(clip.language, []).append(place)
    chosen: list[int] = []
    # The language with the fewest first, so that others can have what it leaves.
    for left, of_language in zip(range(len(places), 0, -1), sorted(places.values(), key=len), strict=True):
        count = min(-(-(n - len(chosen)) // left), len(of_language))
        among = range(count) if seed is None else seeded_sample(len(of_language), count, seed)
        chosen += [of_language[i] for i in among]
    return [clips[i] for i in sorted(chosen)]


def with_true_durations(clips: Sequence[Clip], decoded: Mapping[str, Decoded]) -> list[Clip]:
    """The clips with their listed durations corrected if the corpus lists all of them too long by the same share.

    Some corpora list durations at another sampling rate, or before silence was cut off. A clip that was cut short
    differs from the others and is still found.
    """
    pairs = [(decoded[clip.name].samples / SAMPLE_RATE, clip.duration_s) for clip in clips if not clip.part]
    shares = [seconds / listed for seconds, listed in pairs if listed and seconds]
    if len(shares) < 4:
        return list(clips)
    low, middle, high = quantiles(shares)
    if middle >= TOO_LONG_SHARE or high - low > SAME_SHARE * middle:
        return list(clips)
    log.warning(
        "%s: the corpus lists durations that are %.2f times those of the recordings throughout; a clip counts as cut "
        "short if it is shorter than its listed duration divided by that",
        clips[0].split,
        1 / middle,
    )
    return [c if c.part or not c.duration_s else replace(c, duration_s=c.duration_s * middle) for c in clips]


def select(
    clips: Iterable[Clip],
    decoded: Mapping[str, Decoded],
    processor: Processor | None,
    rules: FilterRules,
    scored: Mapping[str, str] = NONE,
) -> tuple[list[Clip], list[Reject]]:
    """Divides the clips of one split into those to use and those to leave out.

    Without a processor, windows and tokens are not checked. Training clips longer than the window are left out; longer
    validation and test clips are kept, because a score must not depend on a choice of clips. scored: the names of
    clips that may not be used again, by the digest of their audio.
    """
    kept: list[Clip] = []
    rejects: list[Reject] = []
    first = dict(scored)
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
        found: list[Reason] = [reason for start, reason in REASONS.items() if facts.error.startswith(start)]
        reason = found[0] if found else "undecodable"
        return Reject(clip.name, clip.split, reason, facts.error)
    if facts.samples == 0 and clip.part:
        return Reject(clip.name, clip.split, "cut short", "the recording ends before this part of it")
    if facts.samples == 0:
        return Reject(clip.name, clip.split, "empty", "no samples")
    if clip.duration_s and seconds < clip.duration_s - TOLERANCE_S:
        detail = f"{seconds:.2f} s of {clip.duration_s:.2f} s, by the times that the corpus lists"
        return Reject(clip.name, clip.split, "cut short", detail)
    if facts.peak < 10 ** (rules.silence_dbfs / 20):
        level = 20 * np.log10(facts.peak) if facts.peak else -np.inf
        detail = f"its peak is {level:.1f} dB, under data.silence_dbfs={rules.silence_dbfs:g}"
        return Reject(clip.name, clip.split, "silent", detail)
    if seconds < rules.min_duration_s:
        limit = f"data.min_duration_s={rules.min_duration_s:g}"
        return Reject(clip.name, clip.split, "too short", f"{seconds:.2f} s, under {limit}")
    if seconds > longest and clip.split == "train":
        limit = f"data.max_duration_s={longest:g}" if longest == rules.max_duration_s else _window(longest)
        return Reject(clip.name, clip.split, "too long", f"{seconds:.2f} s, over {limit}")
    return None


def _window(seconds: float) -> str:
    return f"the model's window of {seconds:g} s" + " (model.window_s)" * (seconds != STOCK_WINDOW_S)


def _text_fault(clip: Clip, processor: Processor | None) -> Reject | None:
    if not clip.text:
        return Reject(clip.name, clip.split, "empty transcript")
    if token := control_token_in(clip.text, processor):
        return Reject(clip.name, clip.split, "control token", f"{token} is no text")
    # A text has at most as many tokens as bytes, so few texts have to be tokenized.
    if processor and len(clip.text.encode()) > processor.max_label_tokens - len(processor.prefix) - 1:
        tokens = len(processor.encode(clip.text))
        if tokens > processor.max_label_tokens:
            most = f"the model's {processor.max_label_tokens}"
            return Reject(clip.name, clip.split, "too many tokens", f"{tokens} tokens, over {most}")
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
    """Raises DataError if more than the allowed share of the rows was left out, with a remedy for each reason.

    Clips that are left out by the division into splits do not count, neither among the rows.
    """
    faults = [reject for reject in rejects if reject.reason not in BY_DIVISION]
    rows -= len(rejects) - len(faults)
    if len(faults) <= max_reject_rate * rows:
        return
    lines = []
    for reason, count in count_reasons(faults).items():
        first = next(reject for reject in faults if reject.reason == reason)
        detail = f" ({first.detail})" if first.detail and first.detail != reason else ""
        lines.append(f"  {count} {reason}, such as {first.name}{detail}: {REMEDIES[reason]}")
    share = np.ceil(100 * len(faults) / rows) / 100
    if share <= 0.5:
        lines.append(f"  To train and score without them: data.max_reject_rate={share:g}")
    head = f"{len(faults)} of {rows} clips would be left out, more than data.max_reject_rate={max_reject_rate} allows:"
    raise DataError("\n".join([head, *lines]))


def count_reasons(rejects: Iterable[Reject]) -> dict[Reason, int]:
    """The number of rejects by reason, most first."""
    return dict(Counter(reject.reason for reject in rejects).most_common())


def check_languages(splits: Mapping[Split, Sequence[Clip]]) -> None:
    """Raises DataError if a split that has clips lacks a language that another split has."""
    counts = {split: Counter(clip.language for clip in clips) for split, clips in splits.items() if clips}
    every = dict.fromkeys(language for languages in counts.values() for language in languages)
    for split, languages in counts.items():
        if missing := [language for language in every if language not in languages]:
            found = "; ".join(f"{s} {', '.join(f'{n} {code}' for code, n in of.items())}" for s, of in counts.items())
            raise DataError(
                f"the {split} split has no clip of the language {missing[0]} that can be used (clips: {found}). Add "
                "some, take them from the training clips (data.held_out=0.1, where a language has no such split), "
                "raise data.limit, or leave this language out"
            )


def check_split_leakage(splits: Mapping[Split, Sequence[tuple[Clip, Decoded]]], rules: FilterRules) -> None:
    """Raises DataError if two splits have a speaker or a clip in common, which would make scores too optimistic.

    A clip that training has in common with another split is no training clip any more; see `select`.
    """
    rows = [(split, clip, facts) for split, pairs in splits.items() for clip, facts in pairs]
    shared_clips = _shared((facts.digest, split) for split, _, facts in rows)
    if shared_clips and not rules.allow_shared_clips:
        name = next(clip.name for _, clip, facts in rows if facts.digest in shared_clips)
        raise DataError(
            f"{len(shared_clips)} clips are both in validation and in test, such as {name}. Remove them from "
            "validation; its scores choose the checkpoint that is tested"
        )
    # Of one language: Common Voice divides the speakers of each by itself.
    shared_speakers = _shared(((clip.language, clip.speaker), split) for split, clip, _ in rows if clip.speaker)
    if shared_speakers and not rules.allow_shared_speakers:
        raise DataError(
            f"{len(shared_speakers)} speakers are in two splits. Give all clips of a speaker the same split, or let "
            "kikitori choose: remove the split column and pass data.held_out=0.1. With data.allow_shared_speakers=true "
            "scores hold for these speakers only, not for others"
        )


def _shared(pairs: Iterable[tuple[T, str]]) -> set[T]:
    splits: dict[T, str] = {}
    return {value for value, split in pairs if splits.setdefault(value, split) != split}
