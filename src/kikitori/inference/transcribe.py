"""Transcribes recordings of any length, piece by piece, and says where the text is doubtful."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from math import isnan
from pathlib import Path
from typing import Literal, get_args

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
from kikitori.inference.generate import Generated, generate
from kikitori.inference.reading import choose_reading
from kikitori.inference.segments import SHORTEST_S, Piece, halves, split_at_pauses
from kikitori.inference.timestamps import read_by_timestamps
from kikitori.metrics.normalizer import word_separator
from kikitori.model.whisper import Whisper, check_whisper, encode
from kikitori.runtime.files import expanded

# Doubts for which a piece is read again in two halves, how often its halves are, and the seconds of the shortest piece
# that is.
READ_AGAIN, DEPTH, DIVISIBLE_S = (CUT, LITTLE, REPEATED), 2, 3 * SHORTEST_S
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
    batch_size: int = 8,
    segments: Segments = "auto",
    previous_text: bool = False,
) -> str:
    """Transcribes a recording of any length. A long one is read in pieces, see `transcribe_pieces`.

    audio: a file (mp3, wav, flac, ogg, opus, aiff, ...), or samples: (samples,) float in [-1, 1] at 16 kHz, mono.
    batch_size: pieces of the recording that are transcribed at a time. segments, previous_text: see
    `transcribe_pieces`.
    Raises AudioError if the file is missing or cannot be decoded, ValueError for samples of another shape or type.
    """
    check_whisper(whisper, "transcribe")
    samples = _read_file(expanded(audio)) if isinstance(audio, str | Path) else torch.as_tensor(audio)
    pieces = transcribe_pieces(whisper, samples, batch_size, segments=segments, previous_text=previous_text)
    return joined(whisper, pieces)


def transcribe_pieces(
    whisper: Whisper,
    samples: Tensor,
    batch_size: int = 8,
    advance: Callable[[float], None] = lambda seconds: None,
    segments: Segments = "auto",
    previous_text: bool = False,
) -> list[Piece]:
    """Transcribes (samples,) float in [-1, 1] at 16 kHz.

    segments: pauses reads pieces as long as the clips the model was trained on; timestamps reads whole windows, one
    after the other, and a piece is a sentence between the model's timestamps, see `kikitori.inference.timestamps`;
    auto is timestamps for a recording that is longer than the model's window, if the guard confirmed that the model
    kept them, see `choose_reading`, and otherwise pauses.
    Silent pieces get no text. A piece whose text repeats itself, was cut off by a limit, or is too short for its speech
    is read again in two halves, and these likewise; the halves are taken if less of their time is doubtful.
    advance: called with the seconds of audio that were read. Samples that exceed full scale are scaled to it.
    previous_text: whether each window of timestamps is read with the text before it.
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
    if segments == "auto":
        segments = _chosen(whisper, samples)
    reader, training = _Reader(whisper, samples, batch_size), whisper.model.training
    whisper.model.eval()
    try:
        if segments == "timestamps":
            by_pauses = partial(reader.read_part, advance=lambda seconds: None)
            return read_by_timestamps(whisper, samples, by_pauses, previous_text, advance)
        return reader.read_part(slice(0, len(samples)), advance)
    finally:
        whisper.model.train(training)


def is_long(whisper: Whisper, samples: Tensor) -> bool:
    """Returns whether a recording is longer than the model's window."""
    return len(samples) > whisper.processor.window_s * SAMPLE_RATE


def _chosen(whisper: Whisper, samples: Tensor) -> Segments:
    if not is_long(whisper, samples):
        return "pauses"
    reading = choose_reading(whisper)
    log.info("the recording is read by %s: %s", reading.segments, reading.reason)
    return reading.segments


def joined(whisper: Whisper, pieces: Sequence[Piece]) -> str:
    """Returns the text of a whole recording."""
    return word_separator(whisper.processor.text_language).join(piece.text for piece in pieces if piece.text)


def piece_limit_s(whisper: Whisper) -> float:
    """Returns the most seconds to transcribe at once: the model's window, but no more than most of its training clips.

    A model that was tuned on short clips leaves out parts of longer ones.
    """
    processor = whisper.processor
    window_s = min(processor.window_s, processor.window.longest_s(processor.window_s))
    return min(window_s, max(whisper.trained_on["p95_s"], LEAST_LIMIT_S)) if whisper.trained_on else window_s


@dataclass(frozen=True)
class _Reader:
    whisper: Whisper
    samples: Tensor
    batch_size: int

    def read_part(self, part: slice, advance: Callable[[float], None]) -> list[Piece]:
        """Returns the pieces of a part of the recording, cut at its pauses."""
        at_long_pauses = self.whisper.trained_on is not None
        cuts = split_at_pauses(self.samples[part], piece_limit_s(self.whisper), at_long_pauses)
        places = [slice(part.start + cut.start, part.start + cut.stop) for cut in cuts]
        return [piece for pieces in self.read(places, DEPTH, advance) for piece in pieces]

    def read(self, places: Sequence[slice], depth: int, advance: Callable[[float], None]) -> list[list[Piece]]:
        """Returns the pieces at each place: one, or those of its halves if they are better."""
        generated = self._generate(places, advance)
        found = [[self._piece(place, row)] for place, row in zip(places, generated, strict=True)]
        again = [
            i
            for i, (piece,) in enumerate(found)
            if depth and piece.doubt in READ_AGAIN and piece.end_s - piece.start_s >= DIVISIBLE_S
        ]
        if again:
            parts = [half for i in again for half in halves(self.samples, places[i])]
            read = iter(self.read(parts, depth - 1, lambda seconds: None))
            for i in again:
                both = [*next(read), *next(read)]
                if doubtful_s(both) < doubtful_s(found[i]):
                    found[i] = both
        return found

    def _piece(self, place: slice, generated: Generated) -> Piece:
        text, doubt = examine(generated, self.samples[place], least_density(self.whisper.trained_on))
        tokens = kept_tokens(tokens_of(self.whisper.processor, generated.tokens, generated.logprobs), text)
        known = [None if isnan(number) else number for number in (generated.no_speech, generated.mean_logprob)]
        return Piece(
            round(place.start / SAMPLE_RATE, 2), round(place.stop / SAMPLE_RATE, 2), text, doubt, tokens, *known
        )

    @torch.inference_mode()
    def _generate(self, places: Sequence[slice], advance: Callable[[float], None]) -> list[Generated]:
        processor, model = self.whisper.processor, self.whisper.model
        generated = [Generated("", cut=False) for _ in places]
        window = [processor.window_frames(place.stop - place.start) for place in places]
        heard = [i for i, place in enumerate(places) if not is_silent(self.samples[place])]
        # Pieces of one batch must have the same window.
        for _, group in groupby(sorted(heard, key=lambda i: window[i]), lambda i: window[i]):
            same_window = list(group)
            for batch in (same_window[i : i + self.batch_size] for i in range(0, len(same_window), self.batch_size)):
                pieces = [self.samples[places[i]] for i in batch]
                features = torch.stack([processor.log_mel(piece) for piece in pieces])
                seconds = [len(piece) / SAMPLE_RATE for piece in pieces]
                states = encode(model, features.to(model.device, model.dtype))
                for i, row in zip(batch, generate(self.whisper, states, seconds, stop_loops=True), strict=True):
                    generated[i] = row
                advance(sum(seconds))
        return generated


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
