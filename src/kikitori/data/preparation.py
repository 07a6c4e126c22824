"""Prepares a corpus: decodes its audio into the audio cache, filters the clips, and reports those left out.

Folders of noise and rooms, for augmentation, are decoded into caches of the same kind.
"""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kikitori.audio.formats import SUFFIXES, UNREADABLE_SUFFIXES
from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.augmentation.operations import SILENT_PEAK
from kikitori.corpora.audio_files import AudioFiles
from kikitori.corpora.types import Clip, Corpus, Decoded, Reject, Split
from kikitori.data.audio_cache import AudioCache, build_audio_cache
from kikitori.data.filters import (
    FilterRules,
    check_languages,
    check_rate,
    check_split_leakage,
    count_reasons,
    select,
    take_subset,
    with_true_durations,
)
from kikitori.joining.plan import Planner, check_joinable
from kikitori.joining.settings import Joining
from kikitori.metrics.speech_rate import fastest_s
from kikitori.model.processor import Processor
from kikitori.runtime.console import progress_bar
from kikitori.runtime.errors import DataError, shortened
from kikitori.runtime.paths import cache_folder

# Seconds: a longer recording is no impulse response.
MAX_ROOM_S = 10
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedData:
    """The usable clips of a corpus, and their decoded audio.

    clips, audio_caches: by split. rejects: the clips and rows that were left out. processor: of the model that the
    clips were filtered for; None if without a model.
    """

    corpus: Corpus
    clips: Mapping[Split, Sequence[Clip]]
    rejects: Sequence[Reject]
    audio_caches: Mapping[Split, AudioCache]
    processor: Processor | None = None

    def summary(self, language: str) -> dict[str, Any]:
        """The `data` of results.json."""
        longest_s = self.processor.window_s if self.processor else float("inf")
        splits: dict[str, Any] = {}
        for split in self.clips:
            seconds = self.durations_s(split)
            over = sum(s > longest_s for s in seconds)
            facts = {"clips": len(seconds), "seconds": round(sum(seconds), 2), "clips_over_window": over}
            splits[split] = {**facts, "store": self.audio_caches[split].path.name, "digest": self.digest(split)}
            if languages := Counter(clip.language for clip in self.clips[split] if clip.language):
                splits[split]["languages"] = dict(sorted(languages.items()))
        return {
            "corpus": self.corpus.description,
            "release": self.corpus.release,
            "language": language,
            "splits": splits,
            "rejects": count_reasons(self.rejects),
        }

    def digest(self, split: Split) -> str:
        """A hash of a split's clip names, audio, transcripts and stated languages, independent of their order."""
        decoded = self.audio_caches[split].decoded
        facts = ((c.name, decoded[c.name].digest, c.text, *filter(None, [c.language])) for c in self.clips[split])
        rows = sorted("\t".join(row) + "\n" for row in facts)
        return sha256("".join(rows).encode()).hexdigest()[:16]

    def durations_s(self, split: Split) -> list[float]:
        """Seconds of each clip of a split."""
        decoded = self.audio_caches[split].decoded
        return [decoded[clip.name].samples / SAMPLE_RATE for clip in self.clips[split]]

    @cached_property
    def train_tokens(self) -> list[int]:
        """Supervised tokens of each training clip: all but the start token."""
        assert self.processor is not None
        return [count - 1 for count in self.processor.count_tokens([clip.text for clip in self.clips["train"]])]

    def planner(self, joining: Joining, seed: int) -> Planner:
        """Plans the training examples. Raises ConfigError if the clips cannot be joined as the settings ask for."""
        processor, clips = self.processor, self.clips["train"]
        assert processor is not None
        decoded, around = self.audio_caches["train"].decoded, len(processor.prefix)
        first = [count - around for count in self.train_tokens]  # start and end: one is in the prefix, one not counted
        languages = [clip.language for clip in clips]
        separators = {language: processor.of(language).separator for language in {*languages}}
        next_tokens = first
        if any(separators.values()):
            texts = [separators[clip.language] + clip.text for clip in clips]
            next_tokens = [count - around - 1 for count in processor.count_tokens(texts)]
        samples, speakers = [decoded[clip.name].samples for clip in clips], [clip.speaker for clip in clips]
        planner = Planner(joining, processor, seed, samples, first, next_tokens, speakers, languages)
        check_joinable(planner)
        return planner

    def trained_on(self, planner: Planner | None = None) -> dict[str, float]:
        """What `Whisper.trained_on` keeps of a training with these clips, or with the examples of a plan."""
        seconds = self.durations_s("train")
        density = [fastest_s(clip.text) / s for clip, s in zip(self.clips["train"], seconds, strict=True)]
        longest_s, more = max(seconds), dict[str, float]()
        if planner:
            seconds = planner.speech_s() or seconds
            more = {"non_speech": planner.joining.non_speech, "timestamps": planner.timestamps}
        facts = {
            "longest_s": max(longest_s, *seconds),
            "p95_s": float(np.quantile(seconds, 0.95)),
            "density": median(density),
        }
        return {name: round(value, 3) for name, value in (facts | more).items()}


def prepare(
    corpus: Corpus,
    splits: Sequence[Split],
    limit: Mapping[str, Any],
    rules: FilterRules,
    processor: Processor | None,
) -> PreparedData:
    """Decodes and filters the clips of some splits. `check_usable` then checks what is left.

    limit: see `kikitori.data.filters.take_subset`. processor: without one, windows and tokens are not checked.
    Raises DataError if the audio cache cannot be written, or, before any audio is decoded, if too many rows of the
    corpus could not be read.
    """
    unreadable = unreadable_rows(corpus, splits)
    check_rate(len(listed_clips(corpus, splits)) + len(unreadable), unreadable, rules.max_reject_rate)
    rows, audio_caches = decode(corpus, splits, limit)
    clips: dict[Split, list[Clip]] = {split: [] for split in splits}
    rejects: dict[Split, list[Reject]] = {}
    scored: dict[str, str] = {}
    for split in sorted(splits, key=lambda split: split == "train"):  # training last, without what is scored
        decoded = audio_caches[split].decoded
        of_split = with_true_durations([clip for clip in rows if clip.split == split], decoded)
        clips[split], rejects[split] = select(of_split, decoded, processor, rules, scored if split == "train" else {})
        if not rules.allow_shared_clips:
            scored |= {decoded[clip.name].digest: f"{clip.name} in {split}" for clip in clips[split]}
    left_out = [*unreadable, *(reject for split in splits for reject in rejects[split])]
    return PreparedData(corpus, clips, left_out, audio_caches, processor)


def decode(
    corpus: Corpus, splits: Sequence[Split], limit: Mapping[str, Any]
) -> tuple[list[Clip], dict[Split, AudioCache]]:
    """The clips within the limit, and one audio cache per split; audio that is cached already is not decoded again."""
    rows = take_subset(listed_clips(corpus, splits), limit)
    audio_caches: dict[Split, AudioCache] = {}
    for split in splits:
        with progress_bar() as progress:
            clips = [clip for clip in rows if clip.split == split]
            audio_caches[split] = build_audio_cache(clips, cache_folder() / "store", progress)
    return rows, audio_caches


def check_usable(prepared: PreparedData, rules: FilterRules) -> None:
    """Raises DataError if too many clips were left out, splits share clips or speakers, or a split is empty."""
    splits, decoded = list(prepared.clips), prepared.audio_caches
    listed, unreadable = listed_clips(prepared.corpus, splits), unreadable_rows(prepared.corpus, splits)
    rejects, kept = list(prepared.rejects), sum(map(len, prepared.clips.values()))
    # Unreadable rows of the whole corpus do not count against the few clips that a limit keeps.
    if kept + len(rejects) - len(unreadable) < len(listed):
        rejects = rejects[len(unreadable) :]
    check_rate(kept + len(rejects), rejects, rules.max_reject_rate)
    check_split_leakage(
        {s: [(clip, decoded[s].decoded[clip.name]) for clip in prepared.clips[s]] for s in splits}, rules
    )
    check_languages(prepared.clips)
    for split in splits:
        if not prepared.clips[split]:
            counts = ", ".join(f"{s} {sum(clip.split == s for clip in listed)}" for s in splits)
            left_out = ", ".join(f"{n} {reason}" for reason, n in count_reasons(rejects).items()) or "none"
            raise DataError(
                f"{prepared.corpus.description}: no clip of the {split} split can be used (clips listed: {counts}; "
                f"left out: {left_out})"
            )


def listed_clips(corpus: Corpus, splits: Sequence[Split]) -> list[Clip]:
    """The clips that the corpus lists in these splits, before any limit or filter."""
    return [clip for clip in corpus.clips if clip.split in splits]


def unreadable_rows(corpus: Corpus, splits: Sequence[Split]) -> list[Reject]:
    """The rows of these splits that were rejected when the corpus was read."""
    return [reject for reject in corpus.rejects if reject.split in splits]


@dataclass(frozen=True)
class Sounds:
    """Recordings of an audio cache by their index, (samples,) int16 each. left_out: the faults of others, by name."""

    cache: AudioCache
    names: Sequence[str]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int, /) -> NDArray[np.int16]:
        return self.cache.pcm(self.names[index])

    def summary(self) -> dict[str, Any]:
        """For results.json: how many there are, and a hash of their names and audio."""
        used = [self.cache.decoded[name] for name in self.names]
        rows = "".join(f"{name}\t{facts.digest}\n" for name, facts in zip(self.names, used, strict=True))
        return {
            "recordings": len(used),
            "seconds": round(sum(facts.samples for facts in used) / SAMPLE_RATE, 2),
            "digest": sha256(rows.encode()).hexdigest()[:16],
            "left_out": dict(self.left_out),
        }


def sound_files(folder: Path, key: str) -> list[str]:
    """The names of the recordings in a folder, at any depth. Raises DataError if there are none.

    key: the setting that names the folder. Links to folders are not followed.
    """
    suffixes = (*SUFFIXES, *UNREADABLE_SUFFIXES)
    paths = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    found = sorted(path.relative_to(folder).as_posix() for path in paths if path.suffix.lower() in suffixes)
    if not found:
        raise DataError(f"augment.{key}={folder}: holds no recordings ({', '.join(SUFFIXES[:5])} and others)")
    return found


def decode_sounds(folder: Path, key: str, roots: Sequence[str], max_reject_rate: float) -> Sounds:
    """Decodes a folder of noise or rooms into the audio cache, unless it is there already.

    Recordings that cannot be used are left out, and the log names them. Raises DataError with their names if there are
    more of them than `max_reject_rate` allows, as for clips. roots: as of AudioFiles.
    """
    files, names = AudioFiles(folder, roots), sound_files(folder, key)
    found = [files.clip(name, "train", "", None) for name in names]
    clips = [clip for clip in found if isinstance(clip, Clip)]
    faults = {reject.name: reject.detail for reject in found if isinstance(reject, Reject)}
    with progress_bar() as progress:
        cache = build_audio_cache(clips, cache_folder() / "store", progress)
    faults |= {clip.name: fault for clip in clips if (fault := _sound_fault(cache.decoded[clip.name], key))}
    if faults:
        lines = shortened([f"{name} ({fault})" for name, fault in sorted(faults.items())])
        message = f"augment.{key}: {len(faults)} of {len(names)} recordings cannot be used: {lines}"
        if len(faults) > max_reject_rate * len(names) or len(faults) == len(names):
            raise DataError(f"{message}; remove or repair them, or raise data.max_reject_rate={max_reject_rate:g}")
        log.warning("%s; augmentation leaves them out", message)
    return Sounds(cache, [clip.name for clip in clips if clip.name not in faults], faults)


def _sound_fault(decoded: Decoded, key: str) -> str | None:
    """Why a recording cannot be noise or an impulse response; None if it can."""
    if decoded.error:
        return decoded.error
    if decoded.peak < SILENT_PEAK:
        return "is silent"
    if key == "room_folder" and decoded.samples > MAX_ROOM_S * SAMPLE_RATE:
        return f"is longer than {MAX_ROOM_S} s: no impulse response"
    return None
