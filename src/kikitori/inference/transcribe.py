"""Transcribes recordings of any length, piece by piece, and says where the text is doubtful."""

import logging
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from math import isnan
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from kikitori.audio.decoder_pool import Decoders
from kikitori.audio.formats import AudioError
from kikitori.audio.waveform import SAMPLE_RATE, to_full_scale
from kikitori.inference.checks import (
    CUT,
    LITTLE,
    NO_SPEECH_FOUND,
    NONE,
    REPEATED,
    examine,
    is_silent,
    kept_tokens,
    least_density,
)
from kikitori.inference.confidence import tokens_of
from kikitori.inference.generate import Engine, Generated, engine_of
from kikitori.inference.reading import choose_reading
from kikitori.inference.segments import SHORTEST_S, Piece, halves, split_at_pauses
from kikitori.inference.timestamps import read_by_timestamps
from kikitori.metrics.normalizer import word_separator
from kikitori.model.features import FRAMES_PER_SECOND
from kikitori.model.whisper import Whisper, check_whisper
from kikitori.runtime.files import expanded

# Doubts for which a piece is read again in two halves, how often its halves are, and the seconds of the shortest piece
# that is.
READ_AGAIN, DEPTH, DIVISIBLE_S = (CUT, LITTLE, REPEATED), 2, 3 * SHORTEST_S
# Seconds of the longest window of which `batch_size` pieces are read at a time. On two cores whisper-base took 37 s for
# 12 minutes with 8 pieces at a time and 270 MB, 40 s with 4 and 162 MB.
PIECE_S = 15.0
# Seconds of the shortest recording: a tenth of a sound of speech.
LEAST_S = 0.02
# Seconds of the shortest limit for pieces, however short the clips were that a model was trained on.
LEAST_LIMIT_S = 2.0


Segments = Literal["auto", "pauses", "timestamps"]
SEGMENTS: tuple[Segments, ...] = get_args(Segments)

log = logging.getLogger(__name__)


def transcribe(
    whisper: Whisper,
    audio: str | Path | Tensor,
    batch_size: int = 4,
    segments: Segments = "auto",
    previous_text: bool = False,
) -> str:
    """Transcribes a recording of any length. A long one is read in pieces, see `transcribe_pieces`.

    audio: a file (mp3, wav, flac, ogg, opus, aiff, ...), or samples: (samples,) float in [-1, 1] at 16 kHz, mono.
    batch_size: pieces of up to 15 s that are transcribed at a time, and fewer longer ones. segments, previous_text: see
    `transcribe_pieces`.
    Raises AudioError if the file is missing or cannot be decoded, ValueError for samples of another shape or type.
    """
    check_whisper(whisper, "transcribe")
    samples = _read_file(expanded(audio)) if isinstance(audio, str | Path) else torch.as_tensor(audio)
    pieces = transcribe_pieces(whisper, samples, batch_size, segments=segments, previous_text=previous_text)
    return joined(whisper, pieces)


def transcribe_pieces(
    model: Whisper | Engine,
    samples: Tensor,
    batch_size: int = 4,
    advance: Callable[[float], None] = lambda seconds: None,
    segments: Segments = "auto",
    previous_text: bool = False,
    language: str | None = None,
) -> list[Piece]:
    """Transcribes (samples,) float in [-1, 1] at 16 kHz.

    segments: pauses reads pieces as long as the clips the model was trained on; timestamps reads whole windows, one
    after the other, and a piece is a sentence between the model's timestamps, see `kikitori.inference.timestamps`;
    auto is timestamps for a recording that is longer than the model's window, if the guard confirmed that the model
    kept them, see `choose_reading`, and otherwise pauses.
    Silent pieces get no text. A piece whose text repeats itself, was cut off by a limit, or is too short for its speech
    is read again in two halves, and these likewise; the halves are taken if less of their time is doubtful.
    batch_size: pieces of up to 15 s that are read at a time, and fewer longer ones.
    advance: called with the seconds of audio that were read. Samples that exceed full scale are scaled to it.
    previous_text: whether each window of timestamps is read with the text before it. language: Whisper's code, None
    for the model's own.
    Raises ValueError for samples of another shape or type, not finite or 100 times over full scale, and ModelError for
    timestamps of a model whose tokenizer has none.
    """
    if samples.ndim != 1:
        raise ValueError(f"audio must be a file, or samples of shape (samples,), got shape {tuple(samples.shape)}")
    if not samples.is_floating_point():
        raise ValueError(
            f"the samples are {samples.dtype}; they must be float in [-1, 1]: for 16-bit audio pass samples / 32768"
        )
    try:
        samples = to_full_scale(samples.to(torch.float32))
    except AudioError as error:
        raise ValueError(f"audio {error}") from error
    if segments not in SEGMENTS:
        raise ValueError(f"segments={segments!r}: must be {', '.join(SEGMENTS[:-1])} or {SEGMENTS[-1]}")
    engine = engine_of(model)
    if segments == "auto":
        segments = _chosen(engine, samples)
    with engine.ready():
        if segments == "timestamps":
            by_pauses = partial(_read_part, engine, samples, batch_size, language)
            return read_by_timestamps(engine, samples, by_pauses, previous_text, advance, language)
        return read_by_pauses(engine, [samples], [language], batch_size, advance)[0]


def read_by_pauses(
    engine: Engine,
    recordings: Sequence[Tensor],
    languages: Sequence[str | None],
    batch_size: int,
    advance: Callable[[float], None] = lambda seconds: None,
) -> list[list[Piece]]:
    """Returns the pieces of each recording, (samples,) at 16 kHz, cut at its pauses; all pieces are read in batches.

    languages: Whisper's code of each, None for the model's own. In fp32 the texts equal those of one recording alone.
    """
    at_long_pauses, limit_s = engine.trained_on is not None, piece_limit_s(engine)
    reader = _Reader(engine, batch_size)
    parts = [
        [_Part(samples, place, language) for place in split_at_pauses(samples, limit_s, at_long_pauses)]
        for samples, language in zip(recordings, languages, strict=True)
    ]
    found = iter(reader.read([part for own in parts for part in own], DEPTH, advance))
    return [[piece for _ in own for piece in next(found)] for own in parts]


def _read_part(engine: Engine, samples: Tensor, batch_size: int, language: str | None, place: slice) -> list[Piece]:
    """Returns the pieces of a part of a recording, with their times in the whole."""
    pieces = read_by_pauses(engine, [samples[place]], [language], batch_size)[0]
    return [moved(piece, place.start / SAMPLE_RATE) for piece in pieces]


def is_long(model: Whisper | Engine, samples: Sized) -> bool:
    """Returns whether a recording is longer than the model's window."""
    return len(samples) > model.processor.window_s * SAMPLE_RATE


def _chosen(engine: Engine, samples: Tensor) -> Segments:
    if not is_long(engine, samples):
        return "pauses"
    reading = choose_reading(engine)
    log.info("the recording is read by %s: %s", reading.segments, reading.reason)
    return reading.segments


def joined(whisper: Whisper | Engine, pieces: Sequence[Piece]) -> str:
    """Returns the text of a whole recording."""
    return word_separator(whisper.processor.text_language).join(piece.text for piece in pieces if piece.text)


def piece_limit_s(model: Whisper | Engine) -> float:
    """Returns the most seconds to transcribe at once: the model's window, but no more than most of its training clips.

    A model that was tuned on short clips leaves out parts of longer ones.
    """
    processor = model.processor
    window_s = min(processor.window_s, processor.window.longest_s(processor.window_s))
    return min(window_s, max(model.trained_on["p95_s"], LEAST_LIMIT_S)) if model.trained_on else window_s


class _Part(NamedTuple):
    """A part of a recording, which is of a language."""

    samples: Tensor
    place: slice
    language: str | None

    @property
    def sound(self) -> Tensor:
        """(samples,) of the part alone."""
        return self.samples[self.place]

    def halves(self) -> list["_Part"]:
        return [self._replace(place=half) for half in halves(self.samples, self.place)]


@dataclass(frozen=True)
class _Reader:
    engine: Engine
    batch_size: int

    def read(self, parts: Sequence[_Part], depth: int, advance: Callable[[float], None]) -> list[list[Piece]]:
        """Returns the pieces of each part: one, or those of its halves if they are better."""
        generated = self._generate(parts, advance)
        found = [[self._piece(part, row)] for part, row in zip(parts, generated, strict=True)]
        again = [
            i
            for i, (piece,) in enumerate(found)
            if depth and piece.doubt in READ_AGAIN and piece.end_s - piece.start_s >= DIVISIBLE_S
        ]
        if again:
            read = iter(self.read([half for i in again for half in parts[i].halves()], depth - 1, lambda seconds: None))
            for i in again:
                both = [*next(read), *next(read)]
                if doubtful_s(both) < doubtful_s(found[i]):
                    found[i] = both
        return found

    def _piece(self, part: _Part, generated: Generated) -> Piece:
        text, doubt = examine(generated, part.sound, least_density(self.engine.trained_on))
        tokens = kept_tokens(tokens_of(self.engine.processor, generated.tokens, generated.logprobs), text)
        known = [None if isnan(number) else number for number in (generated.no_speech, generated.mean_logprob)]
        start_s, end_s = (round(n / SAMPLE_RATE, 2) for n in (part.place.start, part.place.stop))
        return Piece(start_s, end_s, text, doubt, tokens, *known)

    def _generate(self, parts: Sequence[_Part], advance: Callable[[float], None]) -> list[Generated]:
        processor = self.engine.processor
        generated = [Generated("", cut=False) for _ in parts]
        # Pieces of one batch must have the same window, and a batch has one language.
        window = [processor.window_frames(len(part.sound)) for part in parts]
        alike = [(frames, part.language or "") for frames, part in zip(window, parts, strict=True)]
        heard = [i for i, part in enumerate(parts) if not is_silent(part.sound)]
        for _, group in groupby(sorted(heard, key=alike.__getitem__), alike.__getitem__):
            same = list(group)
            size = self._batch_size(window[same[0]] / FRAMES_PER_SECOND)
            for batch in (same[i : i + size] for i in range(0, len(same), size)):
                sounds = [parts[i].sound for i in batch]
                for i, row in zip(batch, self.engine.read(sounds, parts[batch[0]].language), strict=True):
                    generated[i] = row
                advance(sum(map(len, sounds)) / SAMPLE_RATE)
        advance(sum(len(part.sound) for i, part in enumerate(parts) if i not in {*heard}) / SAMPLE_RATE)
        return generated

    def _batch_size(self, window_s: float) -> int:
        """How many pieces in a window of this length are read at a time: fewer of long ones, which take more memory."""
        return max(1, min(self.batch_size, int(self.batch_size * PIECE_S / window_s)))


def moved(piece: Piece, seconds: float) -> Piece:
    """Returns a piece at a later time."""
    return replace(piece, start_s=round(piece.start_s + seconds, 2), end_s=round(piece.end_s + seconds, 2))


def doubtful_s(pieces: Sequence[Piece]) -> float:
    """Returns the seconds of pieces whose text is doubtful. That a piece holds no speech is no doubt about its text."""
    return sum(piece.end_s - piece.start_s for piece in pieces if piece.doubt not in (NONE, NO_SPEECH_FOUND))


def read_recording(decoders: Decoders, path: Path) -> Tensor:
    """Decodes a file to (samples,) float32 at 16 kHz, in another process, which a damaged file may crash.

    Raises AudioError, whose message is the reason alone, if it cannot be decoded or holds next to nothing.
    """
    samples = decoders(path)
    if len(samples) < LEAST_S * SAMPLE_RATE:
        raise AudioError(f"holds {len(samples) / SAMPLE_RATE:.3f} s of audio; there is nothing to transcribe")
    return samples


def _read_file(path: Path) -> Tensor:
    if not path.exists() or path.is_dir():
        fault = "is a folder" if path.is_dir() else "does not exist"
        raise AudioError(f"{path}: {fault}; give an audio file")
    with Decoders(1) as decoders:
        try:
            return read_recording(decoders, path)
        except AudioError as error:
            raise AudioError(f"{path}: {error.args[0]}") from error
