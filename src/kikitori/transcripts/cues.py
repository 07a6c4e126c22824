"""Divides pieces of a recording into subtitles that people can read."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise

from rich.cells import cell_len

from kikitori.inference.segments import Piece
from kikitori.metrics.normalizer import split_words
from kikitori.metrics.speech_rate import fastest_s

# A subtitle has at most this many seconds and lines; a line has at most this many columns, of which a letter takes one
# and a kana or kanji two.
LONGEST_S, LINES, COLUMNS = 7.0, 2, 42
# Seconds of the shortest subtitle: players leave out what has none.
SHORTEST_S = 0.05
# Ends of sentences and of clauses, each with what closes it and the white space after it.
_CLOSING = r"[」』）)\]】》〉”’\"']*\s*"
SENTENCE = re.compile(rf".+?(?:[。！？｡!?…]+{_CLOSING}|\.+[”’\"')]*\s+|$)", re.DOTALL)
CLAUSE = re.compile(rf".+?(?:[、，､；：;:]{_CLOSING}|,[”’\"']*\s+|\s+[-–—]\s+|$)", re.DOTALL)
# What no subtitle begins with; and the endings and particles of Japanese, which belong to what is before them.
_NO_BEGINNING = re.compile(r"[\s。、，．！？!?,.;:)\]」』）】》〉…ー～〜・”’ぁぃぅぇぉっゃゅょァィゥェォッャュョ々]")
_HIRAGANA = re.compile(r"[ぁ-ゖ]")


@dataclass(frozen=True)
class Cue:
    """One subtitle: its text in one or two lines, from start_s to end_s."""

    start_s: float
    end_s: float
    text: str


def cues_of(pieces: Iterable[Piece], language: str) -> list[Cue]:
    """Returns the subtitles of a recording: of each piece one or, if it is long, several.

    A piece is divided at the ends of sentences, then at commas, then between words, as seldom as LONGEST_S and LINES
    allow. It is known only when a piece begins and ends, so its time is shared by the seconds that its parts take to
    say. No subtitle overlaps the one after it. language: Whisper's code of the text's.
    """
    found: list[Cue] = []
    end_s = 0.0
    for piece in pieces:
        whole = Cue(max(piece.start_s, end_s), max(piece.end_s, end_s), " ".join(piece.text.split()))
        if whole.text:
            found += _divide(whole, _levels(language))
            end_s = whole.end_s
    shown = [Cue(cue.start_s, cue.end_s, _lines(cue.text.strip(), language)) for cue in found if cue.text.strip()]
    return _long_enough(shown)


def _levels(language: str) -> list[Callable[[str], list[str]]]:
    """Ways to divide a text, the best first."""
    words = partial(_words, language=language)
    return [SENTENCE.findall, CLAUSE.findall, partial(words, phrases=True), words, list]


def _divide(cue: Cue, levels: Sequence[Callable[[str], list[str]]]) -> list[Cue]:
    """Divides a subtitle in the first way in which it is divided, and its parts in the others."""
    if _fits(cue) or not levels:
        return [cue]
    parts = [part for timed in _timed(cue, levels[0](cue.text)) for part in _divide(timed, levels[1:])]
    return _packed(parts, cue.text)


def _fits(cue: Cue) -> bool:
    return cue.end_s - cue.start_s <= LONGEST_S and cell_len(cue.text.strip()) <= LINES * COLUMNS


def _timed(cue: Cue, texts: Sequence[str]) -> list[Cue]:
    """The parts of a subtitle, with as much of its time as their texts take to say."""
    shares = [fastest_s(text) + 1e-6 for text in texts]
    ends = [cue.start_s + (cue.end_s - cue.start_s) * done / sum(shares) for done in accumulate(shares)]
    return [Cue(start, end, text) for (start, end), text in zip(pairwise([cue.start_s, *ends]), texts, strict=True)]


def _packed(parts: Sequence[Cue], whole: str) -> list[Cue]:
    """Joins neighbours: as few subtitles as are possible, of about the same length."""
    count = len(_joined(parts, cell_len(whole)))
    for most in range(-(-cell_len(whole) // count), cell_len(whole)):
        if len(found := _joined(parts, most)) == count:
            return found
    return _joined(parts, cell_len(whole))


def _joined(parts: Sequence[Cue], most: int) -> list[Cue]:
    """Joins neighbours as long as they fit, in at most so many columns."""
    found = [parts[0]]
    for part in parts[1:]:
        both = Cue(found[-1].start_s, part.end_s, found[-1].text + part.text)
        if _fits(both) and cell_len(both.text.strip()) <= most:
            found[-1] = both
        else:
            found.append(part)
    return found


def _words(text: str, language: str, phrases: bool = False) -> list[str]:
    """The words of a text, each with the white space and the marks after it, and with `phrases` words in hiragana."""
    at, starts = 0, []
    for word in split_words(text, language):
        at = text.index(word, at)
        starts.append(at)
        at += len(word)
    starts = [start for start in starts[1:] if not _NO_BEGINNING.match(text[start])]
    starts = [start for start in starts if not (phrases and _HIRAGANA.match(text[start]))]
    return [text[start:end] for start, end in pairwise([0, *starts, len(text)])]


def _lines(text: str, language: str) -> str:
    """Breaks a text that is too long for a line in two, after a clause if there is one near its middle."""
    if cell_len(text) <= COLUMNS:
        return text
    for divide in _levels(language)[1:]:
        breaks = list(accumulate(map(len, divide(text))))[:-1]
        if breaks:
            at = min(breaks, key=lambda at: abs(cell_len(text[:at]) - cell_len(text[at:])))
            if max(cell_len(text[:at].strip()), cell_len(text[at:].strip())) <= max(COLUMNS, 0.6 * cell_len(text)):
                return f"{text[:at].strip()}\n{text[at:].strip()}"
    return text


def _long_enough(cues: Sequence[Cue]) -> list[Cue]:
    """Gives each subtitle its SHORTEST_S, at the cost of those after it."""
    found: list[Cue] = []
    for cue in cues:
        start_s = max(cue.start_s, found[-1].end_s if found else 0.0)
        found.append(Cue(start_s, max(cue.end_s, start_s + SHORTEST_S), cue.text))
    return found
