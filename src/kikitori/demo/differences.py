"""Texts of several models side by side: rows of the same time, and what differs between two texts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import isfinite
from typing import NamedTuple

from kikitori.inference.confidence import words_of
from kikitori.inference.segments import Piece
from kikitori.metrics.alignment import spans
from kikitori.metrics.normalizer import normalise

# Seconds by which the ends of two models' pieces may differ and still be the same pause, and seconds of a row after
# which any end will do, since two models may never pause at the same moment.
SAME_PAUSE_S, LONG_ROW_S = 0.3, 60.0
# Characters of a text that are compared. Of one that repeats itself, the rest says nothing and takes long to align.
MAX_COMPARED = 2000

# Kinds of a part: as in the other text, different from it, different in what scoring ignores, missing in this text.
SAME, DIFFERENT, IGNORED, MISSING = "", "different", "ignored", "missing"


class Part(NamedTuple):
    """Characters of a text with one confidence, of one kind. The text of a missing part is the other text's."""

    text: str
    kind: str
    confidence: float | None


@dataclass
class Rows:
    """Collects the pieces of several models, and gives them out in rows that begin and end at the same time.

    pending: of each model, the pieces of the row that is not complete.
    """

    models: int
    start_s: float = 0.0
    pending: list[list[Piece]] = field(init=False)

    def __post_init__(self) -> None:
        self.pending = [[] for _ in range(self.models)]

    def add(self, model: int, piece: Piece) -> list[list[Piece]] | None:
        """Adds a piece of a model; returns the pieces of each model where that completes a row."""
        self.pending[model].append(piece)
        if not all(self.pending):
            return None
        ends = [pieces[-1].end_s for pieces in self.pending]
        is_joint = max(ends) - min(ends) <= SAME_PAUSE_S
        return self.rest() if is_joint or min(ends) - self.start_s >= LONG_ROW_S else None

    def rest(self) -> list[list[Piece]]:
        """Returns the pieces that are left, and begins a new row."""
        row, self.pending = self.pending, [[] for _ in range(self.models)]
        self.start_s = max((piece.end_s for pieces in row for piece in pieces), default=self.start_s)
        return row


def confidences(pieces: Sequence[Piece], separator: str, language: str) -> tuple[str, list[float | None]]:
    """Returns the text of pieces and the probability of the word of each character, None where it is unknown."""
    text, found = "", list[float | None]()
    for piece in (piece for piece in pieces if piece.text):
        if text:
            text, found = text + separator, [*found, *[None] * len(separator)]
        known = [_finite(word.probability) for word in words_of(piece.tokens, language) for _ in word.text]
        text += piece.text
        found += known if len(known) == len(piece.text) else [None] * len(piece.text)
    return text, found


def _finite(probability: float) -> float | None:
    return round(probability, 3) if isfinite(probability) else None


def parts(text: str, known: Sequence[float | None], other: str | None, language: str) -> list[Part]:
    """Divides a text where its confidence changes, and where it differs from another text.

    known: the confidence of each character. other: None to compare with nothing.
    """
    found: list[Part] = []
    at = 0
    for kind, own, missing in _changes(text, other, language):
        if kind == MISSING:
            found.append(Part(missing, MISSING, None))
        for probability, characters in groupby(range(at, at + len(own)), key=known.__getitem__):
            found.append(Part("".join(text[i] for i in characters), kind, probability))
        at += len(own)
    return found


def _changes(text: str, other: str | None, language: str) -> list[tuple[str, str, str]]:
    """Spans of a text: the kind, the span, and what the other text has in its place. Adjacent edits are one span."""
    if other is None:
        return [(SAME, text, text)]
    compared, rest = text[:MAX_COMPARED], text[MAX_COMPARED:]
    found: list[tuple[str, str, str]] = []
    aligned = spans(other[:MAX_COMPARED], compared) if other and compared else []
    for is_equal, group in groupby(aligned, key=lambda span: span.kind == "equal"):
        edits = list(group)
        theirs, own = "".join(edit.reference for edit in edits), "".join(edit.hypothesis for edit in edits)
        is_ignored = not is_equal and normalise(theirs, language) == normalise(own, language)
        kind = SAME if is_equal else IGNORED if is_ignored else DIFFERENT if own else MISSING
        found.append((kind, own, theirs))
    if not aligned and (compared or other):
        found.append((DIFFERENT, compared, other) if compared else (MISSING, "", other))
    return [*found, (SAME, rest, rest)] if rest else found
