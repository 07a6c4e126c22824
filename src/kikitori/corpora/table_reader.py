"""Reads the tables and paths of a corpus, which may be malformed or hostile."""

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from kikitori.corpora.types import Clip, Reject, Split
from kikitori.runtime.errors import DataError


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
