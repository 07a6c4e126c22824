"""Files that are whole or not there, whatever ends the process or the machine."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from kikitori.runtime.errors import DataError


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file to write, that takes its name when the block ends well; until then the name is the old file's.

    Written in the same folder, since a rename across file systems is a copy. Raises OSError where it cannot be.
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
    """Put a folder's new and changed names on the disk: a file's own fsync says nothing of them."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write a value that a person may want to read, too; whoever reads meanwhile finds the old or the new one whole."""
    with atomic_write(path) as file:
        file.write((json.dumps(value, ensure_ascii=False, indent=2, allow_nan=True) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """An object that `write_json` wrote. Raises DataError where the file is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}; delete it, or its folder") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no object; delete it, or its folder")
    return value


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line; a file is there when all of them are, so that it tells that a step was done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What `write_lines` wrote."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
