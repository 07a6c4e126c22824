"""The folder of a transcription: a file for each recording and format, and what was read of each recording so far.

What was read is in `.kikitori/NAME.jsonl`: a line that names the recording and the settings, a line for each section,
and the line of the end. It is written section by section, so that a long recording is resumed in its middle, and it is
kept, so that other formats can be written without reading anything again.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from kikitori.inference.confidence import Token
from kikitori.inference.segments import Piece
from kikitori.runtime.errors import DataError, remedy_of
from kikitori.runtime.files import UNREADABLE, create, open_regular, parse, plain, write_text
from kikitori.runtime.processes import folder_lock
from kikitori.transcripts.formats import FORMATS, Transcript

# The folder of what was read, and the bytes of a file in it at most: 3 hours of speech take 5 MB.
RECORDS, MOST_BYTES = ".kikitori", 2**27
# The file in it that names those which are written next to it, each followed by a zero byte: all others are a person's.
WRITTEN = ".written"
# Bytes of a name, so that suffixes can follow it: file systems allow 255.
LONGEST_NAME = 200


def _is_token(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], float)


_PIECE = {
    "start_s!": float,
    "end_s!": float,
    "text!": str,
    "doubt!": str,
    "tokens!": [_is_token],
    "no_speech": float,
    "mean_logprob": float,
}
_SECTION = {
    "end!": int,
    "language!": str,
    "segments!": str,
    "pieces!": [_PIECE],
    "language_probability": float,
    "is_last!": bool,
}
_HEAD = {"recording!": str, "settings!": str, "bytes!": int, "modified!": int}


class Source(NamedTuple):
    """A recording, and its name in the folder, without a suffix: its path in the folder that was given."""

    path: Path
    name: str


class Read(NamedTuple):
    """What was read of a section: its pieces, and the sample of the recording where it ends.

    language: Whisper's code; segments: pauses or timestamps.
    """

    end: int
    is_last: bool
    language: str
    language_probability: float | None
    segments: str
    pieces: list[Piece]


@dataclass
class Record:
    """What was read of one recording, in a file if there is a path; otherwise nothing is kept.

    is_finished: whether it was read to its end before, and its files were written.
    """

    head: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    sections: list[Read] = field(default_factory=list)
    is_finished: bool = False

    @property
    def pieces(self) -> list[Piece]:
        """All pieces so far."""
        return [piece for section in self.sections for piece in section.pieces]

    def add(self, section: Read) -> None:
        """Adds a section, which is on the disk when this returns; the last one only when the record is finished."""
        self.sections.append(section)
        if not section.is_last:
            self._save(section)

    def finish(self) -> None:
        """Marks the recording as read, once its files are written."""
        self._save(self.sections[-1])

    def _save(self, section: Read) -> None:
        if self.path is None:
            return
        is_first = section is self.sections[0]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [*([self.head] if is_first else []), _plain(section)]
        with create(self.path) if is_first else _appending(self.path) as file:
            _write(file, "".join(f"{json.dumps(row)}\n" for row in rows).encode())

    def discard(self) -> None:
        """Forgets what was read, of a recording that turned out to be damaged."""
        self.sections.clear()
        if self.path:
            self.path.unlink(missing_ok=True)


class OutputFolder:
    """A folder of transcripts in some formats. settings: names all on which the texts depend, but the recording."""

    def __init__(self, folder: Path, formats: Sequence[str], settings: str) -> None:
        self.folder, self.formats, self.settings = folder, formats, settings
        self._names: dict[str, str] = {}
        self._taken: dict[str, str] = {}
        self._written = _written_in(folder)
        for path in sorted((folder / RECORDS).rglob("*.jsonl")):
            for head, _ in islice(_rows(path), 1):
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
        rows = [*_rows(path)]
        if not rows or rows[0][0] != head:
            return Record(head, path)
        sections = [_section(row) for row, _ in rows[1:]]
        os.truncate(path, rows[-1][1])  # without the half line of a killed process
        return Record(head, path, sections, bool(sections) and sections[-1].is_last)

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
            with _appending(self.folder / RECORDS / WRITTEN) as file:
                _write(file, name + b"\0")
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


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """The objects of a record, and the byte after each, up to the first that is damaged, such as a half line."""
    try:
        with open_regular(path, MOST_BYTES) as lines:
            kind: Any = _HEAD
            end = 0
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                yield parse(plain(line.decode()), kind), end
                kind = _SECTION
    except UNREADABLE:
        return


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _appending(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "ab")


def _plain(section: Read) -> dict[str, Any]:
    pieces = [
        {**vars(piece), "tokens": [[token.text, token.probability] for token in piece.tokens]}
        for piece in section.pieces
    ]
    return {**section._asdict(), "pieces": pieces}


def _section(row: dict[str, Any]) -> Read:
    pieces = [
        Piece(
            piece["start_s"],
            piece["end_s"],
            piece["text"],
            piece["doubt"],
            tuple(Token(text, p) for text, p in piece["tokens"]),
            piece.get("no_speech"),
            piece.get("mean_logprob"),
        )
        for piece in row["pieces"]
    ]
    probability = row.get("language_probability")
    return Read(row["end"], row["is_last"], row["language"], probability, row["segments"], pieces)
