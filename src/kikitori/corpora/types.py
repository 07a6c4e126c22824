"""Types of a corpus: clips with their transcripts, and clips that are left out with the reason."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

Reason = Literal[
    "malformed row",
    "not UTF-8",
    "outside the corpus",
    "missing",
    "undecodable",
    "cut short",
    "empty",
    "silent",
    "too short",
    "too long",
    "empty transcript",
    "control token",
    "too many tokens",
    "duplicate",
]
# The error of a row of a Hub dataset that names a file elsewhere; its clip is left out as "outside the corpus".
OUTSIDE_DATASET = "names a file outside the dataset"


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording and its transcript.

    name: unique in its corpus (a file's path within it). identity: changes with the audio (a file's size and time).
    source: a file, or a function that returns a file or the bytes of one. speaker: only for checking that splits share
    no speaker; it is written nowhere. duration_s: as the corpus lists it.
    """

    name: str
    split: Split
    text: str
    identity: str
    source: Path | Callable[[], Path | bytes]
    speaker: str | None = None
    duration_s: float | None = None


@dataclass(frozen=True, slots=True)
class Reject:
    """A clip, or a row of a table, that is left out."""

    name: str
    split: Split
    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Decoded:
    """Facts about a decoded clip.

    samples: their number at 16 kHz. peak: in [0, 1]. digest: a hash of the samples. error: why decoding failed, or "".
    """

    samples: int
    peak: float
    digest: str
    error: str


@dataclass(frozen=True)
class Corpus:
    """The rows of a corpus as listed in its files, before any audio is opened.

    description: for results, such as a release's name; never a path, which may contain a user name.
    """

    description: str
    clips: Sequence[Clip]
    rejects: Sequence[Reject]
    release: str | None = None
