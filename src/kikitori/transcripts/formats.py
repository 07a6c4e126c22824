"""The formats of a transcript: text, subtitles, and tables for other programs."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isnan
from typing import Any

from kikitori.inference.segments import Piece
from kikitori.metrics.normalizer import word_separator
from kikitori.runtime.console import as_json
from kikitori.runtime.text import printable, printable_line
from kikitori.transcripts.cues import Cue, cues_of


@dataclass(frozen=True)
class Transcript:
    """What was read of one recording.

    language: Whisper's code of what is spoken; text_language: of the text, English for a translation.
    language_probability: how probable the language is, if it was detected.
    """

    file: str
    seconds: float
    pieces: list[Piece]
    language: str
    text_language: str
    language_probability: float | None = None

    @property
    def text(self) -> str:
        """The whole text."""
        return word_separator(self.text_language).join(piece.text for piece in self.pieces if piece.text)


def txt(transcript: Transcript) -> str:
    """A line for each piece with text."""
    return "".join(f"{one_line(piece.text)}\n" for piece in transcript.pieces if piece.text)


def srt(transcript: Transcript) -> str:
    """SubRip."""
    cues = cues_of(transcript.pieces, transcript.text_language)
    blocks = (
        f"{number}\n{_span(cue, ',')}\n{printable(cue.text).replace('-->', '->')}\n"
        for number, cue in enumerate(cues, 1)
    )
    return "\n".join(blocks)


def vtt(transcript: Transcript) -> str:
    """WebVTT."""
    cues = cues_of(transcript.pieces, transcript.text_language)
    blocks = (f"{_span(cue, '.')}\n{_escaped(printable(cue.text))}\n" for cue in cues)
    return "\n".join(["WEBVTT\n", *blocks])


def tsv(transcript: Transcript) -> str:
    """Start and end in milliseconds and text, as of openai-whisper."""
    rows = (
        f"{_ms(piece.start_s)}\t{_ms(piece.end_s)}\t{one_line(piece.text)}\n"
        for piece in transcript.pieces
        if piece.text
    )
    return "".join(["start\tend\ttext\n", *rows])


def json(transcript: Transcript) -> str:
    """The keys of openai-whisper, with the doubt about each segment, and its tokens as text and probability."""
    segments = [
        {
            "id": number,
            "start": piece.start_s,
            "end": piece.end_s,
            "text": piece.text,
            "tokens": [{"text": text, "probability": p} for text, p in _tokens(piece)],
            "avg_logprob": _rounded(piece.mean_logprob),
            "no_speech_prob": _rounded(piece.no_speech),
            "doubt": piece.doubt,
        }
        for number, piece in enumerate(transcript.pieces)
    ]
    row = {**_facts(transcript), "segments": segments}
    return f"{as_json(row, indent=1)}\n"


def jsonl(transcript: Transcript) -> str:
    """One line with all pieces."""
    pieces = [
        {
            "start_s": piece.start_s,
            "end_s": piece.end_s,
            "text": piece.text,
            "doubt": piece.doubt,
            "tokens": _tokens(piece),
            "no_speech": _rounded(piece.no_speech),
            "mean_logprob": _rounded(piece.mean_logprob),
        }
        for piece in transcript.pieces
    ]
    return f"{as_json({**_facts(transcript), 'pieces': pieces})}\n"


FORMATS: dict[str, Callable[[Transcript], str]] = {
    "txt": txt,
    "srt": srt,
    "vtt": vtt,
    "json": json,
    "tsv": tsv,
    "jsonl": jsonl,
}


def one_line(text: str) -> str:
    """A text in one line, without characters that control a terminal."""
    return printable_line(" ".join(text.split()))


def _facts(transcript: Transcript) -> dict[str, Any]:
    found = {"file": transcript.file, "seconds": transcript.seconds, "text": transcript.text}
    found |= {"language": transcript.language}
    if transcript.language_probability is not None:
        found["language_probability"] = _rounded(transcript.language_probability)
    return found


def _tokens(piece: Piece) -> list[tuple[str, float | None]]:
    return [(token.text, _rounded(token.probability)) for token in piece.tokens]


def _rounded(number: float | None) -> float | None:
    return None if number is None or isnan(number) else round(number, 4)


def _ms(seconds: float) -> int:
    return round(1000 * seconds)


def _span(cue: Cue, point: str) -> str:
    return f"{_clock(cue.start_s, point)} --> {_clock(cue.end_s, point)}"


def _clock(seconds: float, point: str) -> str:
    minutes, ms = divmod(_ms(seconds), 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{ms // 1000:02}{point}{ms % 1000:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
