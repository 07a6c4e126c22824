"""The nouns of a corpus: a clip with its transcript, and a clip that was left out with the reason."""

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from kikitori.errors import DataError

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


@contextmanager
def open_table(table: Path, **form: Any) -> Iterator["csv.DictReader[str]"]:
    """The rows of a .csv or .tsv as dicts: a surplus cell stands under None, an absent one is None.

    Bytes that are no UTF-8 are carried along, to be told by `file_clip`. Raises DataError where csv cannot read on.
    """
    line = 0
    try:
        with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, **form)
            try:
                yield reader
            finally:
                line = reader.line_num
    except (csv.Error, OSError) as error:
        raise DataError(f"{table} cannot be read beyond line {line}: {error}; mend the table there") from error


def file_clip(root: Path, path: str, split: Split, text: str, speaker: str | None) -> Clip | Reject:
    """A clip of a file below `root`, or a reject where the path leaves `root` or the text is not UTF-8.

    A missing file is no reject yet: whoever decodes it finds out, once.
    """
    if not_utf8(path) or not_utf8(text):
        return Reject(ascii(path), split, "not UTF-8", ascii(text))
    if not path or "\0" in path:
        return Reject(path, split, "malformed row", "a NUL byte in the path" if path else "no path")
    file = root / path
    # realpath, because Path.resolve raises where links go round in a circle.
    if Path(path).is_absolute() or not Path(os.path.realpath(file)).is_relative_to(_real(root)):
        return Reject(path, split, "outside the corpus", f"leaves {root.name}/")
    try:
        stat = file.stat()
        # Permission may be given later without a change of size or time.
        identity = f"{stat.st_size} {stat.st_mtime_ns}" if os.access(file, os.R_OK) else "unreadable"
    except OSError:
        identity = "missing"
    return Clip(path, split, text.strip(), identity, file, speaker or None)


@lru_cache(maxsize=4)
def _real(root: Path) -> str:
    """Asked for every clip, found once."""
    return os.path.realpath(root)


def not_utf8(text: str) -> bool:
    """Whether a text cannot be written: errors='surrogateescape' carried foreign bytes in, or JSON half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
