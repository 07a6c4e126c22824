"""The folder of a transcription: a file for each recording and format, and what was read of each recording so far.

What was read is in `.kikitori/NAME.jsonl`, see `kikitori.transcripts.record`. It is kept, so that other formats can be
written without reading anything again.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kikitori.runtime.errors import DataError, remedy_of
from kikitori.runtime.files import UNREADABLE, open_regular, write_text
from kikitori.runtime.processes import folder_lock
from kikitori.transcripts.formats import FORMATS, Transcript
from kikitori.transcripts.record import MOST_BYTES, Record, append, open_record, read_head
from kikitori.transcripts.sources import Source

# The folder of what was read.
RECORDS = ".kikitori"
# The file in it that names those which are written next to it, each followed by a zero byte: all others are a person's.
WRITTEN = ".written"
# Bytes of a name, so that suffixes can follow it: file systems allow 255.
LONGEST_NAME = 200


class OutputFolder:
    """A folder of transcripts in some formats. settings: names all on which the texts depend, but the recording."""

    def __init__(self, folder: Path, formats: Sequence[str], settings: str) -> None:
        self.folder, self.formats, self.settings = folder, formats, settings
        self._names: dict[str, str] = {}
        self._taken: dict[str, str] = {}
        self._written = _written_in(folder)
        for path in sorted((folder / RECORDS).rglob("*.jsonl")):
            if head := read_head(path):
                name = str(path.relative_to(folder / RECORDS))[: -len(".jsonl")]
                self._names.setdefault(head["recording"], name)
                self._taken[name.casefold()] = head["recording"]

    def name(self, source: Source) -> str:
        """The name of a recording's files. It stays, whatever other recordings are transcribed to this folder later.

        It is the recording's own without its suffix, or with it if another recording has that name.
        """
        key = _key(source)
        if key not in self._names:
            self._names[key] = next(name for name in _candidates(source) if name.casefold() not in self._taken)
            self._taken[self._names[key].casefold()] = key
        return self._names[key]

    def record(self, source: Source) -> Record:
        """What was read of a recording with the same settings; nothing if it has changed since."""
        path = self._record(source)
        found = source.path.stat() if source.path.exists() else None
        head = {
            "recording": _key(source),
            "settings": self.settings,
            "bytes": found.st_size if found else 0,
            "modified": found.st_mtime_ns if found else 0,
        }
        return open_record(path, head)

    def check_free(self, sources: Iterable[Source]) -> None:
        """Raises DataError for a file that would be replaced, although no earlier call wrote it."""
        for path in (self._file(source, name) for source in sources for name in self.formats):
            if os.path.lexists(path) and self._relative(path) not in self._written:
                raise DataError(f"{path} exists and is no earlier transcript; move it, or give another --output")

    def missing(self, source: Source) -> list[str]:
        """The formats in which a recording has no file."""
        return [name for name in self.formats if not self._file(source, name).is_file()]

    def write(self, source: Source, transcript: Transcript, formats: Iterable[str]) -> None:
        """Writes the files of a recording; each exists only when it is complete."""
        for name in formats:
            path = self._file(source, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._own(path)
            write_text(path, FORMATS[name](transcript))

    def _own(self, path: Path) -> None:
        """Notes a file, before it is written, as one that may be replaced."""
        if (name := self._relative(path)) not in self._written:
            (self.folder / RECORDS).mkdir(exist_ok=True)
            append(self.folder / RECORDS / WRITTEN, name + b"\0")
            self._written.add(name)

    def _relative(self, path: Path) -> bytes:
        return os.fsencode(path.relative_to(self.folder))

    def _record(self, source: Source) -> Path:
        return self.folder / RECORDS / f"{self.name(source)}.jsonl"

    def _file(self, source: Source, format_name: str) -> Path:
        return self.folder / f"{self.name(source)}.{format_name}"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder, and keeps other processes out. Raises DataError if it cannot be written to."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"--output {folder} is a file; give a folder")
    if (folder / RECORDS).is_symlink():
        raise DataError(f"--output {folder}: {RECORDS} in it is a link; delete the link")
    with disk_errors_as_sentences():
        (folder / RECORDS).mkdir(parents=True, exist_ok=True)
        with folder_lock(folder / RECORDS, "--output", DataError):
            yield


@contextmanager
def disk_errors_as_sentences() -> Iterator[None]:
    """Raises DataError in place of an error of the disk, with the remedy."""
    try:
        yield
    except OSError as error:
        if isinstance(error, BrokenPipeError) or not (remedy := remedy_of(error)):
            raise
        raise DataError(f"{remedy}; the same command resumes") from error


def _key(source: Source) -> str:
    """What names a recording: another text for each path, which JSON can hold."""
    return source.path.absolute().as_uri()


def _candidates(source: Source) -> Iterator[str]:
    """Names for a recording's files, from the best."""
    folder, _, stem = source.name.rpartition("/")
    short = stem
    while len(os.fsencode(short)) > LONGEST_NAME:
        short = short[:-1]
    names = [short, f"{short}{source.path.suffix}"]
    number = 2
    while True:
        yield from (f"{folder}/{name}" if folder else name for name in names)
        names, number = [f"{short}{source.path.suffix}-{number}"], number + 1


def _written_in(folder: Path) -> set[bytes]:
    """The files that earlier calls wrote, by their paths in the folder."""
    try:
        with open_regular(folder / RECORDS / WRITTEN, MOST_BYTES) as file:
            return {*file.read().split(b"\0")}
    except UNREADABLE:
        return set()
