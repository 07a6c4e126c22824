"""What was read of a recording so far, in a file that a killed process leaves usable.

The file has a line that names the recording and the settings, a line for each section, and the line of the end. It is
written section by section, so that a long recording is resumed where it stopped, even if its decoding failed there.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from kikitori.inference.confidence import Token
from kikitori.inference.segments import Piece
from kikitori.runtime.files import UNREADABLE, create, open_regular, parse, plain

# The bytes of a file at most: 3 hours of speech take 5 MB.
MOST_BYTES = 2**27


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
        append(self.path, "".join(f"{json.dumps(row)}\n" for row in rows).encode(), anew=is_first)


def reading_of(head: dict[str, Any]) -> bytes:
    """A digest of a first line: of all on which the texts of a recording depend."""
    return sha256(json.dumps(head, sort_keys=True).encode()).hexdigest().encode()


def read_head(path: Path) -> dict[str, Any] | None:
    """The first line of a record; None if it has none."""
    return next((row for row, _ in _rows(path)), None)


def open_record(path: Path, head: dict[str, Any]) -> Record:
    """What a file holds of a recording; nothing if its first line is not `head`."""
    rows = [*_rows(path)]
    if not rows or rows[0][0] != head:
        return Record(head, path)
    sections = [_section(row) for row, _ in rows[1:]]
    os.truncate(path, rows[-1][1])  # without the half line of a killed process
    return Record(head, path, sections, bool(sections) and sections[-1].is_last)


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


def append(path: Path, data: bytes, anew: bool = False) -> None:
    """Adds to a file what is on the disk when this returns. anew: replaces the file."""
    with create(path) if anew else _appending(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _appending(path: Path) -> BinaryIO:
    # Without O_NONBLOCK, opening a pipe would wait for a reader.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "ab")


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
