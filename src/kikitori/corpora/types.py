"""Types of a corpus: clips with their transcripts, decoded or not, and clips that are left out with the reason."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from kikitori.metrics.languages import known_code
from kikitori.runtime.errors import DataError

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
    "in validation or test",
    "of a speaker in validation or test",
    "listed twice",
    "not transcribed",
    "in no split",
]
# Reasons that follow from how a corpus is divided into splits. They are no faults, and not limited in number.
BY_DIVISION: frozenset[Reason] = frozenset(
    {
        "in validation or test",
        "of a speaker in validation or test",
        "listed twice",
        "not transcribed",
        "in no split",
    }
)
# What stands between a recording's name and a part of it, talk.mp3#t=12.5,15: W3C's media fragments.
PART = "#t="
# The error of a row of a Hub dataset that names a file elsewhere; its clip is left out as "outside the corpus".
OUTSIDE_DATASET = "names a file outside the dataset"


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording, or a part of one, and its transcript.

    name: unique in its corpus (a file's path within it, and the part). identity: changes with the audio (a file's size
    and time, and the part). source: a file, or a function that returns a file or the bytes of one. part: start and end
    in seconds, the end None for that of the recording; None for a whole recording. speaker: only for keeping the
    speakers of splits apart, and for joining clips of one speaker in training; it is written nowhere. duration_s: as
    the corpus lists it. language: Whisper's code, in a corpus that states one for each clip; None for the model's.
    """

    name: str
    split: Split
    text: str
    identity: str
    source: Path | Callable[[], Path | bytes]
    speaker: str | None = None
    duration_s: float | None = None
    part: tuple[float, float | None] | None = None
    language: str | None = None

    @property
    def recording(self) -> str:
        """The name of the recording that this is a part of; the clip's own name if it is all of it."""
        return self.name.rpartition(PART)[0] if self.part else self.name


def stated_language(value: object, place: str) -> str:
    """Whisper's code of the language that a corpus states for a clip. place: where, for messages.

    Raises DataError for none at all, and for one that Whisper does not have.
    """
    if value is None or not str(value).strip():
        raise DataError(f"{place} is empty; write the clip's language there, such as ja, or leave the row out")
    try:
        return known_code(str(value))
    except ValueError as error:
        raise DataError(
            f"{place}: {error} (give a related language that Whisper has, such as ja, or leave these clips out)"
        ) from error


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

    description: for results, such as a release's name; never a path, which may contain a user name. absent: for splits
    that the corpus does not have, the reason.
    """

    description: str
    clips: Sequence[Clip]
    rejects: Sequence[Reject]
    release: str | None = None
    absent: Mapping[Split, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Speech:
    """A clip of a corpus: its name, (samples,) float32 at 16 kHz, its transcript and Whisper's code of its language."""

    name: str
    samples: Tensor
    text: str
    language: str
