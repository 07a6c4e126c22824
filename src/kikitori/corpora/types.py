"""The nouns of a corpus: a clip with its transcript, and a clip that was left out with the reason."""

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
    "too many tokens",
    "duplicate",
]
# The error of a row of a Hub dataset that names a file elsewhere; its clip is left out as "outside the corpus".
OUTSIDE_DATASET = "names a file outside the dataset"


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording and what was said in it.

    name: unique in its corpus (a file's path in it). identity: changes when the audio does (size and time of a file).
    speaker: serves to keep splits apart and goes nowhere else. source: a file, or a function that gives it, or its
    bytes. duration_s: as the corpus lists it.
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
    """A clip, or a row that names one, that is left out."""

    name: str
    split: Split
    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Decoded:
    """What decoding found. samples: at 16 kHz. peak: in [0, 1]. digest: of the samples. error: of decoding, or ''."""

    samples: int
    peak: float
    digest: str
    error: str


@dataclass(frozen=True)
class Corpus:
    """The rows of a corpus as its files tell them, before any audio is opened.

    description: what stands in the results, such as a release's name; never a path of somebody's home.
    """

    description: str
    clips: Sequence[Clip]
    rejects: Sequence[Reject]
    release: str | None = None
