"""The folder of a transcription: a file for each recording and format, and what was read of each recording so far.

What was read is in `.kikitori/NAME.jsonl`, see `kikitori.transcripts.record`. It is kept, so that other formats can be
written without reading anything again.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from kikitori.runtime.errors import DataError
from kikitori.runtime.files import UNREADABLE, encoded, open_regular, write_text
from kikitori.runtime.processes import folder_lock
from kikitori.transcripts.formats import FORMATS, Transcript
from kikitori.transcripts.record import MOST_BYTES, Record, append, open_record, read_head, reading_of
from kikitori.transcripts.sources import Source

# The folder of what was read.
RECORDS = ".kikitori"
# The file in it that notes those which are written next to it: all others are a person's. Each entry is a zero byte, a
# digest of the content, one of the recording and the settings, the recording, and the path, divided by spaces.
WRITTEN = ".written"
# Bytes of a name, and characters of its suffix, so that more can follow: file systems allow 255.
LONGEST_NAME, LONGEST_SUFFIX = 200, 6


class OutputFolder:
    """A folder of transcripts in some formats. settings: names all on which the texts depend, but the recording."""

    def __init__(self, folder: Path, formats: Sequence[str], settings: str) -> None:
        self.folder, self.formats, self.settings = folder, formats, settings
        self._names: dict[str, str] = {}
        self._taken: dict[str, str] = {}
        self._noted: dict[bytes, dict[bytes, bytes]] = defaultdict(dict)
        for digest, reading, key, path in _entries(folder):
            self._set_noted(path, digest, reading)
            self._names[key.decode()] = name = os.fsdecode(path).rpartition(".")[0]
            self._taken[name.casefold()] = key.decode()
        for record in sorted((folder / RECORDS).rglob("*.jsonl")):
            if head := read_head(record):
                name = str(record.relative_to(folder / RECORDS))[: -len(".jsonl")]
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
        return open_record(self._record(source), self._head(source))

    def check_free(self, sources: Iterable[Source]) -> None:
        """Raises DataError for a file that would be replaced, although no earlier call wrote what it holds."""
        for source in sources:
            reading = reading_of(self._head(source))
            for path in (self._file(source, name) for name in self.formats):
                noted, digest = self._noted[self._relative(path)], _digest(path)
                is_ours = digest in noted or (digest and reading == next(reversed(noted.values()), None))
                if os.path.lexists(path) and not is_ours:
                    what = "was changed since it was written" if noted else "exists and is no earlier transcript"
                    raise DataError(f"{path} {what}; move it, or give another --output")

    def write(self, source: Source, record: Record, transcript: Transcript) -> list[Path]:
        """Writes the files of a recording that are missing or of an earlier reading; each exists once it is complete.

        Returns those that stay as they are, since somebody has changed them.
        """
        changed, reading = [], reading_of(record.head)
        for name in self.formats:
            path = self._file(source, name)
            noted, digest = self._noted[self._relative(path)], _digest(path)
            if not os.path.lexists(path) or noted.get(digest, reading) != reading:
                path.parent.mkdir(parents=True, exist_ok=True)
                text = FORMATS[name](transcript)
                self._note(path, encoded(text), reading, record.head["recording"].encode())
                write_text(path, text)
            elif digest not in noted:
                changed.append(path)
        return changed

    def _note(self, path: Path, data: bytes, reading: bytes, key: bytes) -> None:
        """Notes a file before it is written, so that one of a killed process may be replaced."""
        digest = sha256(data).hexdigest().encode()
        (self.folder / RECORDS).mkdir(exist_ok=True)
        append(self.folder / RECORDS / WRITTEN, b"\0" + b" ".join((digest, reading, key, self._relative(path))))
        self._set_noted(self._relative(path), digest, reading)

    def _set_noted(self, path: bytes, digest: bytes, reading: bytes) -> None:
        """Notes what a file holds now: the last one."""
        self._noted[path].pop(digest, None)
        self._noted[path][digest] = reading

    def _head(self, source: Source) -> dict[str, Any]:
        found = source.path.stat() if source.path.exists() else None
        return {
            "recording": _key(source),
            "settings": self.settings,
            "bytes": found.st_size if found else 0,
            "modified": found.st_mtime_ns if found else 0,
        }

    def _relative(self, path: Path) -> bytes:
        return os.fsencode(path.relative_to(self.folder))

    def _record(self, source: Source) -> Path:
        return self.folder / RECORDS / f"{self.name(source)}.jsonl"

    def _file(self, source: Source, format_name: str) -> Path:
        return self.folder / f"{self.name(source)}.{format_name}"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder, and keeps other processes out. Raises DataError if it cannot be one."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"--output {folder} is a file; give a folder")
    if (folder / RECORDS).is_symlink():
        raise DataError(f"--output {folder}: {RECORDS} in it is a link; delete the link")
    (folder / RECORDS).mkdir(parents=True, exist_ok=True)
    with folder_lock(folder / RECORDS, f"--output {folder}", DataError):
        yield


def _key(source: Source) -> str:
    """What names a recording: another text for each path, which JSON can hold."""
    return source.path.absolute().as_uri()


def _candidates(source: Source) -> Iterator[str]:
    """Names for a recording's files, from the best."""
    folder, _, stem = source.name.rpartition("/")
    short = stem
    while len(os.fsencode(short)) > LONGEST_NAME:
        short = short[:-1]
    suffix = source.path.suffix[:LONGEST_SUFFIX]
    names = [short, f"{short}{suffix}"]
    number = 2
    while True:
        yield from (f"{folder}/{name}" if folder else name for name in names)
        names, number = [f"{short}{suffix}-{number}"], number + 1


def _entries(folder: Path) -> list[list[bytes]]:
    """What earlier calls noted of each file: digests of the content and of what was read, the recording, the path."""
    with suppress(*UNREADABLE), open_regular(folder / RECORDS / WRITTEN, MOST_BYTES) as file:
        # A killed process may have left a part of an entry.
        return [entry for text in file.read().split(b"\0") if len(entry := text.split(b" ", 3)) == 4]
    return []


def _digest(path: Path) -> bytes:
    """A digest of a file's content; empty for what cannot be read, such as a link."""
    with suppress(*UNREADABLE), open_regular(path, MOST_BYTES) as file:
        return sha256(file.read()).hexdigest().encode()
    return b""
