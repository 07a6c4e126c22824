"""The recordings to transcribe: files, and those in folders."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from kikitori.audio.formats import CONVERT, SUFFIXES, find_recordings
from kikitori.runtime.errors import DataError


class Source(NamedTuple):
    """A recording, and its name in a folder of transcripts: its path in the folder that was given, without suffix."""

    path: Path
    name: str


def find_sources(paths: Iterable[Path], note: Callable[[str], None]) -> list[Source]:
    """The given files, and the recordings in the given folders, each once; `note` names files that cannot be decoded.

    Raises DataError if a path does not exist, or a folder has none.
    """
    found: dict[Path, Source] = {}
    for path in paths:
        for source in _sources(path, note):
            found.setdefault(source.path.absolute(), source)
    return [*found.values()]


def _sources(path: Path, note: Callable[[str], None]) -> list[Source]:
    if not path.exists():
        pipe = "; write the recording to a file first" if str(path) == "-" else ""
        raise DataError(f"{path} does not exist{pipe}")
    if path.is_dir():
        return [Source(file, str(file.relative_to(path).with_suffix(""))) for file in _recordings(path, note)]
    if not path.is_file():
        raise DataError(f"{path} is a pipe or device; write the recording to a file first")
    return [Source(path, path.stem)]


def _recordings(folder: Path, note: Callable[[str], None]) -> list[Path]:
    readable, unreadable = find_recordings(folder)
    if not readable:
        passed = f"; it holds {by_suffix(unreadable)}" if unreadable else ""
        raise DataError(f"{folder} holds no file that can be read ({', '.join(SUFFIXES)}){passed}")
    if unreadable:
        note(f"{folder}: passed over {by_suffix(unreadable)}")
    return readable


def by_suffix(files: Sequence[Path]) -> str:
    """Counts and names files that cannot be decoded, with the remedy."""
    counts = ", ".join(f"{count} {suffix}" for suffix, count in Counter(p.suffix.lower() for p in files).most_common())
    return f"{counts} (such as {files[0].name}), which cannot be decoded; {CONVERT}"
