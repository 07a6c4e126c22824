"""Files that may be anyone's: read as plain values of limited size, written without following a link.

Files of a run or a cache may come from another person. So only regular files are opened, JSON is limited in size, depth
and numbers, and a file that is written is a new one, in the folder that was named.
"""

import json
import math
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from kikitori.runtime.errors import DataError

# Limits of a JSON file, far above what a run writes: bytes, bytes of one that is read line by line, nesting, values,
# and characters of a text.
MAX_BYTES, MAX_BYTES_OF_LINES, MAX_DEPTH, MAX_VALUES, MAX_CHARACTERS = 2**26, 2**28, 32, 10**6, 10**5
# Half characters, and numbers that may be out of range. A short text without them need not be searched further.
UNUSUAL = re.compile(r"\\u[dD]|[0-9]{19}|[0-9][eE]")
# Kinds for `parse`: of any value, and of any object.
ANY: Callable[[Any], bool] = lambda value: True  # noqa: E731
OBJECT = {str: ANY}
# Errors of reading a file, whatever is in it.
UNREADABLE = (OSError, ValueError, RecursionError, MemoryError)


def expanded(path: str | Path) -> Path:
    """A path in which ~ is the home folder; of a user who is unknown here, the path as it is, which does not exist."""
    return Path(os.path.expanduser(path))


def open_regular(path: Path, most: float = math.inf) -> BinaryIO:
    """Opens a file for reading. Raises OSError for a link, ValueError for a pipe, a device, or over `most` bytes."""
    # Without O_NONBLOCK, opening a pipe would wait for a writer.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    facts = os.fstat(file.fileno())
    if stat.S_ISREG(facts.st_mode) and facts.st_size <= most:
        return file
    file.close()
    raise ValueError(f"it is no regular file, or has more than {most} bytes")


def read_text(path: Path, most: int = MAX_BYTES) -> str:
    """Reads a text file. Raises OSError or ValueError as `open_regular`, and ValueError if it is not UTF-8."""
    with open_regular(path, most) as file:
        return file.read().decode()


def is_regular(path: Path) -> bool:
    """Returns whether there is a file of this name itself: no link, pipe, device or folder."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def check_extent(value: Any) -> None:
    """Raises ValueError for values that are nested deeper, or are more, than any file of a run holds.

    A value counts as often as it is referred to, since whatever walks through the values meets it as often.
    """
    left, waiting = MAX_VALUES, [(value, 0)]
    while waiting:
        value, depth = waiting.pop()
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise ValueError(f"it holds more than {MAX_VALUES} values, or nests them deeper than {MAX_DEPTH}")
        if isinstance(value, dict | list | tuple):
            items = [*value, *value.values()] if isinstance(value, dict) else value
            waiting += [(item, depth + 1) for item in items]


def plain(text: str) -> Any:
    """Parses JSON. NaN and infinity become null, and half a character its escape, so that any value can be written.

    Raises ValueError or RecursionError for what `check_extent` refuses, and for numbers and texts out of range.
    """
    value = json.loads(text, parse_constant=lambda _: None)
    if len(text) < MAX_CHARACTERS and not UNUSUAL.search(text) and text.count("[") + text.count("{") < MAX_DEPTH:
        return value
    check_extent(value)
    return _writable(value)


def _writable(value: Any) -> Any:
    if isinstance(value, dict):
        return {_writable(key): _writable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_writable(item) for item in value]
    if isinstance(value, str) and len(value) <= MAX_CHARACTERS:
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, str) or (isinstance(value, int) and abs(value) >= 2**63):
        raise ValueError("it holds a number or a text out of range")
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse(value: Any, kind: Any, place: str = "it") -> Any:
    """Returns a plain value of a kind. Raises ValueError that names the place of what is of another.

    kind: a type, a condition (a function of the value), a tuple of alternatives, [kind] for a list; for an object its
    names with their kinds, or {kind of all names: kind}. A name with ! must be there. Other names are kept as they are,
    since nothing reads them. null is absent, unless the kind includes it.
    """
    if isinstance(kind, tuple):
        for alternative in kind:
            with suppress(ValueError):
                return parse(value, alternative, place)
    elif isinstance(kind, list) and isinstance(value, list):
        return [parse(item, kind[0], f"{place}[{i}]") for i, item in enumerate(value)]
    elif isinstance(kind, dict) and isinstance(value, dict):
        return _parse_object(value, kind, place)
    elif kind(value) if callable(kind) and not isinstance(kind, type) else _is_a(value, kind):
        return value
    raise ValueError(f"{place} is {str(value)[:40]!r}")


def _is_a(value: Any, kind: Any) -> bool:
    return type(value) in ((int, float) if kind is float else (kind or type(None),))


def _parse_object(value: dict[Any, Any], kind: dict[Any, Any], place: str) -> dict[Any, Any]:
    if isinstance(next(iter(kind)), str):
        wanted = [(name.rstrip("!"), name.endswith("!"), of) for name, of in kind.items()]
    else:
        wanted = [(parse(key, name, f"a name in {place}"), False, of) for name, of in kind.items() for key in value]
    found = dict(value)
    for key, is_required, of in wanted:
        if key in found:
            try:
                found[key] = parse(found[key], of, f"{place}.{key}")
            except ValueError:
                if found.pop(key) is not None:
                    raise
        if is_required and key not in found:
            raise ValueError(f"{place} lacks {key}")
    return found


def read_json(path: Path, kind: Any = OBJECT) -> dict[str, Any]:
    """Reads plain values of a kind for `parse`. Raises DataError if that is impossible for any reason."""
    try:
        return parse(plain(read_text(path)), kind, path.name)
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read: {error}; delete it, or its folder") from error


def read_lines(path: Path, kind: Any = OBJECT, most: int | None = None) -> list[dict[str, Any]]:
    """Reads the objects that `write_lines` wrote, of a kind for `parse`. Raises DataError as `read_json`.

    most: lines; no limit if None.
    """
    try:
        with open_regular(path, MAX_BYTES_OF_LINES) as lines:
            rows = [parse(plain(line.decode()), kind, f"line {i}") for i, line in enumerate(islice(lines, most), 1)]
            if lines.read(1):
                raise ValueError(f"it has more than {most} lines")
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read: {error}; delete it") from error
    return rows


def create(path: Path) -> BinaryIO:
    """Opens a new, empty file in place of whatever has this name, through which nothing else can be written."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "wb")


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yields a binary file that replaces `path` when the block ends without an error; until then `path` is unchanged.

    The file is written in the same folder, since a rename across file systems is a copy. It is on the disk when this
    returns, so it survives a crash of the machine, too. Raises OSError if it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with create(partial) as file:
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
    with create(path) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        for start in range(0, size, 2**24):  # macOS
            file.write(bytes(min(2**24, size - start)))


def write_text(path: Path, text: str) -> None:
    """Writes a text. A process that reads meanwhile gets the old or the new file, never a part."""
    with atomic_write(path) as file:
        file.write(encoded(text))


def encoded(text: str) -> bytes:
    """The bytes of a text in a file: UTF-8, with escapes for what has none."""
    return text.encode(errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, as `write_text` does."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=True) + "\n")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object per line. The file exists only when it is complete, so it also marks a step as done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        for row in rows:
            file.write(encoded(json.dumps(row, ensure_ascii=False) + "\n"))


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
