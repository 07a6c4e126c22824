"""Atomic file writes, and JSON files written that way."""

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from kikitori.runtime.errors import DataError


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yields a binary file that replaces `path` when the block ends without an error; until then `path` is unchanged.

    The file is written in the same folder, since a rename across file systems is a copy. It is on the disk when this
    returns, so it survives a crash of the machine, too. Raises OSError if it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's new and renamed entries to the disk, which fsync of a file does not do."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reserve_file(path: Path, size: int) -> None:
    """Creates a file of `size` zero bytes that take their space on the disk now. Raises OSError if it is too full."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        for start in range(0, size, 2**24):  # macOS
            file.write(bytes(min(2**24, size - start)))


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON. A process that reads meanwhile gets the old or the new file, never a part."""
    with atomic_write(path) as file:
        file.write((json.dumps(value, ensure_ascii=False, indent=2, allow_nan=True) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Reads an object that `write_json` wrote. Raises DataError if the file is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}; delete it, or its folder") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no JSON object; delete it, or its folder")
    return value


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object per line. The file exists only when it is complete, so it also marks a step as done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads the objects that `write_lines` wrote."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def is_utf8(text: str) -> bool:
    """Returns whether a text can be encoded: foreign bytes kept as surrogates, or half a character of JSON, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def remove_if_nothing_else(folder: Path, files: Collection[Path]) -> None:
    """Removes a folder that holds no other files than these, and an empty folder of the day above it."""
    found = list(folder.rglob("*"))
    if any(path.is_file() and path not in files for path in found) or Path.cwd().is_relative_to(folder.resolve()):
        return
    with suppress(OSError):
        for path in sorted(found, reverse=True):  # what a folder holds before the folder
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()
        if re.fullmatch(r"\d{4}-\d\d-\d\d", folder.parent.name):
            folder.parent.rmdir()
