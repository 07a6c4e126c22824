"""Reads a recording window by window, with the timestamps that the model writes.

Each window is as long as the model's, and the next one begins at the last complete timestamp: the end of the last
sentence that is in the window as a whole. The rules for timestamps are Whisper's own (Radford et al. 2022, sec. 4.5).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.inference.checks import NO_SPEECH_FOUND, REPEATED, examine, is_silent, least_density
from kikitori.inference.confidence import tokens_of
from kikitori.inference.generate import Engine, Generated, engine_of
from kikitori.inference.greedy import Row
from kikitori.inference.segments import SHORTEST_S, Piece
from kikitori.model.processor import SAMPLES_PER_STAMP, Processor
from kikitori.model.whisper import Whisper
from kikitori.runtime.errors import ModelError

# The first timestamp of a window is at most this one, of one second.
MAX_INITIAL = 50


class Segment(NamedTuple):
    """A sentence of a window: its first and last timestamps, by number, and the tokens of its text.

    at: the first of these among the tokens of the window.
    """

    start: int
    end: int
    tokens: list[int]
    at: int


@dataclass(frozen=True)
class TimestampRule:
    """Lowers the logits of tokens that may not follow: a rule of `greedy`.

    Timestamps come in pairs around each text, do not descend, and the first is at most `max_initial`. Where all of them
    together are more probable than any text, one of them follows. end: the end token, before which is all text.
    """

    first: int
    no_timestamps: int
    end: int
    max_initial: int

    def __call__(self, rows: list[list[int]], logits: Tensor) -> None:
        logits[:, self.no_timestamps] = -torch.inf
        for tokens, row in zip(rows, logits, strict=True):
            self._restrict(tokens, row)
            log_probs = row.log_softmax(dim=0)
            if log_probs[self.first :].logsumexp(dim=0) > log_probs[: self.first].max():
                row[: self.first] = -torch.inf

    def _restrict(self, tokens: Sequence[int], logits: Tensor) -> None:
        if not tokens:
            # An empty window may end at once, if the model may write nothing at all.
            logits[: self.end] = -torch.inf
            logits[self.end + 1 : self.first] = -torch.inf
            logits[self.first + self.max_initial + 1 :] = -torch.inf
            return
        is_stamp = [token >= self.first for token in tokens[-2:]]
        after_start = is_stamp[-1] and (len(tokens) < 2 or is_stamp[0])
        after_end = is_stamp[-1] and not after_start
        if after_start:
            logits[self.first :] = -torch.inf
        elif after_end:
            logits[: self.end] = -torch.inf
        last = max((token for token in tokens if token >= self.first), default=self.first)
        # A sentence takes time; the next one may begin where it ends.
        logits[self.first : last + (not after_end)] = -torch.inf


def timestamp_rule(processor: Processor) -> TimestampRule:
    """The rule for a model. Raises ModelError if its tokenizer has no timestamps."""
    first = processor.timestamp_begin
    if first is None:
        raise ModelError(
            "the model's tokenizer has no timestamps; read its recordings by their pauses (--segments pauses)"
        )
    return TimestampRule(first, processor.prefix[-1], processor.tokenizer.eos_token_id, MAX_INITIAL)


def segments_of(tokens: Sequence[int], first: int) -> tuple[list[Segment], int | None]:
    """Returns the complete sentences of a window, and the start of the one that its end cuts off, None without one.

    first: the id of <|0.00|>. A text without an end is not complete.
    """
    found: list[Segment] = []
    start: int | None = None
    text: list[int] = []
    for place, token in enumerate(tokens):
        if token < first:
            text.append(token)
        elif start is not None and text:
            found.append(Segment(start, token - first, text, place - len(text)))
            start, text = None, []
        else:
            start, text = token - first, []
    return found, start


def read_by_timestamps(
    model: Whisper | Engine,
    samples: Tensor,
    read_by_pauses: Callable[[slice], list[Piece]],
    previous_text: bool = False,
    advance: Callable[[float], None] = lambda seconds: None,
    language: str | None = None,
) -> list[Piece]:
    """Transcribes (samples,) at 16 kHz, in windows of the model's length; a piece is a sentence between timestamps.

    Greedily, whatever `generation.num_beams` is. A window whose text repeats itself, or that has no complete sentence,
    is read by `read_by_pauses` instead. previous_text: whether the text before a window is its prompt; not after a
    doubtful one. advance: called with the seconds of audio that were read. language: Whisper's code, None for the
    model's own.
    """
    engine = engine_of(model)
    processor = engine.processor.of(language)
    reader, at = _WindowReader(engine, processor, samples, timestamp_rule(processor), read_by_pauses), 0
    pieces: list[Piece] = []
    previous: list[int] = []
    while at < len(samples):
        found, following, text = reader.read(at, previous if previous_text else [])
        pieces += found
        previous = text
        advance((following - at) / SAMPLE_RATE)
        at = following
    return pieces


class _Reading(NamedTuple):
    """What a window held: its pieces, the sample where the next begins, and the tokens of its text if it is sure."""

    pieces: list[Piece]
    following: int
    text: list[int]


@dataclass(frozen=True)
class _WindowReader:
    engine: Engine
    processor: Processor
    samples: Tensor
    rule: TimestampRule
    read_by_pauses: Callable[[slice], list[Piece]]

    def read(self, at: int, previous: Sequence[int]) -> _Reading:
        """Reads the window that begins at a sample."""
        window = round(self.processor.window_s * SAMPLE_RATE)
        place = slice(at, min(at + window, len(self.samples)))
        if is_silent(self.samples[place]):
            return _Reading([], place.stop, [])
        row = self._generate(place, previous)
        segments, cut_off = segments_of(row.tokens, self.rule.first)
        reach = _sample(segments[-1].end) if segments else place.stop - at
        doubt = self._doubt(row, segments, self.samples[at : at + reach])
        if doubt == NO_SPEECH_FOUND:
            return _Reading([Piece(*_times(place), "", doubt, (), row.no_speech, _mean(row))], place.stop, [])
        if row.ended and not row.tokens:
            return _Reading([], place.stop, [])
        is_beginning = not segments and row.ended and row.tokens[-1] >= self.rule.first
        if is_beginning:  # of a sentence, without any text
            reach = _sample(cut_off or 0)
        is_read = (segments or is_beginning) and reach >= min(SHORTEST_S * SAMPLE_RATE, place.stop - at)
        if doubt == REPEATED or not is_read:
            return self._by_pauses(place)
        is_done = place.stop == len(self.samples) and row.ended and cut_off is None
        text = [token for segment in segments for token in segment.tokens]
        following = place.stop if is_done else min(at + reach, place.stop)
        return _Reading(self._pieces(place, row, segments, doubt), following, [] if doubt else text)

    def _by_pauses(self, place: slice) -> _Reading:
        """Reads a window by its pauses, but not the last piece of it, where the next window begins."""
        pieces, following = self.read_by_pauses(place), place.stop
        if following < len(self.samples) and len(pieces) > 1:
            following = round(pieces.pop().start_s * SAMPLE_RATE)
        return _Reading(pieces, following, [])

    def _generate(self, place: slice, previous: Sequence[int]) -> Row:
        """Generates the tokens of one window, after a prompt if there is one."""
        processor = self.processor
        prompt = [processor.previous_id, *previous[-processor.max_prompt_tokens :]] if previous else []
        return self.engine.read_window(self.samples[place], [*prompt, *processor.prefix[:-1]], self.rule)

    def _doubt(self, row: Row, segments: Sequence[Segment], samples: Tensor) -> str:
        """What speaks against the text of a window. That it was cut off does not, after complete sentences."""
        tokens = [token for segment in segments for token in segment.tokens] or row.tokens
        text = self.processor.decode([tokens])[0]
        generated = Generated(text, not segments and not row.ended, row.no_speech, _mean(row))
        return examine(generated, samples, least_density(self.engine.trained_on))[1]

    def _pieces(self, place: slice, row: Row, segments: Sequence[Segment], doubt: str) -> list[Piece]:
        """The sentences of a window with their times in the recording."""
        texts = self.processor.decode([segment.tokens for segment in segments])
        pieces = []
        for segment, text in zip(segments, texts, strict=True):
            part = slice(*(min(place.start + _sample(n), place.stop) for n in segment[:2]))
            logprobs = row.logprobs[segment.at : segment.at + len(segment.tokens)]
            tokens = tokens_of(self.processor, segment.tokens, logprobs)
            pieces.append(Piece(*_times(part), text, doubt, tokens, row.no_speech, _mean(row)))
        return pieces


def _mean(row: Row) -> float:
    """The mean log probability of the tokens of a window and of its end."""
    return row.logprob / (len(row.tokens) + 1)


def _sample(stamp: int) -> int:
    return stamp * SAMPLES_PER_STAMP


def _times(place: slice) -> tuple[float, float]:
    return round(place.start / SAMPLE_RATE, 2), round(place.stop / SAMPLE_RATE, 2)
