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
def open_table(table: Path, **dialect: Any) -> Iterator["csv.DictReader[str]"]:
    """Opens a .csv or .tsv as dicts. Surplus cells of a row are under the key None, missing cells have the value None.

    Bytes that are not UTF-8 are kept as surrogates, for `file_clip` to reject. dialect: arguments of `csv.DictReader`.
    Raises DataError where the table cannot be parsed.
    """
    line = 0
    try:
        with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, **dialect)
            try:
                yield reader
            finally:
                line = reader.line_num
    except (csv.Error, OSError) as error:
        raise DataError(f"{table} cannot be read beyond line {line}: {error}; correct the table there") from error


def file_clip(root: Path, path: str, split: Split, text: str, speaker: str | None) -> Clip | Reject:
    """Makes a clip of a file below `root`, or a reject if the path leaves `root` or something is not UTF-8.

    A missing file is not a reject yet. Decoding finds that out.
    """
    if not_utf8(path) or not_utf8(text):
        return Reject(ascii(path), split, "not UTF-8", ascii(text))
    if not path or "\0" in path:
        return Reject(path, split, "malformed row", "a NUL byte in the path" if path else "no path")
    file = root / path
    # realpath, because Path.resolve raises an error for links that form a loop.
    if Path(path).is_absolute() or not Path(os.path.realpath(file)).is_relative_to(_real(root)):
        return Reject(path, split, "outside the corpus", f"leaves {root.name}/")
    try:
        stat = file.stat()
        # An unreadable file has its own identity: permission may be granted later without a change of size or time.
        identity = f"{stat.st_size} {stat.st_mtime_ns}" if os.access(file, os.R_OK) else "unreadable"
    except OSError:
        identity = "missing"
    return Clip(path, split, text.strip(), identity, file, speaker or None)


def not_utf8(text: str) -> bool:
    """Returns whether a text cannot be encoded: foreign bytes kept as surrogates, or half a character from JSON."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


@lru_cache(maxsize=4)
def _real(root: Path) -> str:
    """Cached, because every clip needs the same one."""
    return os.path.realpath(root)
