"""Reads one recording with all models, step by step: its spectrogram, its texts in rows, and what they took."""

import time
from base64 import b64encode
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kikitori.audio.formats import AudioError
from kikitori.audio.waveform import SAMPLE_RATE, Part, to_float
from kikitori.demo.differences import DIFFERENT, MISSING, Rows, confidences, parts
from kikitori.demo.turns import Check, Event
from kikitori.inference.reading import choose_reading
from kikitori.inference.segments import Piece
from kikitori.inference.transcribe import LEAST_S, Segments, is_long, moved, transcribe_pieces
from kikitori.metrics.error_rates import score_clips
from kikitori.model.features import FRAMES_PER_SECOND, HOP_LENGTH, log_mel
from kikitori.model.whisper import Whisper
from kikitori.transcripts.sections import sections_of

# Seconds of a section, at most: short ones, so that texts come soon. Pieces of it that are read at a time.
SECTION_S, CPU_BATCH, GPU_BATCH = 60, 1, 8
# Columns of a spectrogram, and frames that are computed at a time: half a minute.
COLUMNS, FRAMES_AT_ONCE = 1000, 3000
# The loudest and the faintest value of a log-Mel differ by this much.
RANGE = 2.0


@dataclass
class _Model:
    """A model while it reads: the pieces that are still to come, the end of the last one, and the seconds it took."""

    whisper: Whisper
    segments: Segments
    pieces: Iterator[Piece]
    done_s: float = 0.0
    took_s: float = 0.0
    texts: list[str] = field(default_factory=list)

    @property
    def language(self) -> str:
        return self.whisper.processor.text_language

    @property
    def separator(self) -> str:
        return self.whisper.processor.separator

    @property
    def text(self) -> str:
        return self.separator.join(text for text in self.texts if text)

    def window_s(self, piece: Piece) -> float:
        """Seconds that a piece is padded to; a sentence between timestamps is part of a full window."""
        processor = self.whisper.processor
        samples = round((piece.end_s - piece.start_s) * SAMPLE_RATE)
        is_padded = self.segments == "pauses"
        return processor.window_frames(samples) / FRAMES_PER_SECOND if is_padded else processor.window_s

    def next(self) -> Piece | None:
        """Reads the next piece, if there is one."""
        began = time.monotonic()
        piece = next(self.pieces, None)
        self.took_s += time.monotonic() - began
        if piece:
            self.done_s = piece.end_s
            self.texts.append(piece.text)
        return piece

    def result(self, reference: str | None) -> dict[str, Any]:
        """The whole text, what it took, and its error rate if the true text is known."""
        found = {"text": self.text, "took_s": round(self.took_s, 2)}
        if reference is None:
            return found
        (score,) = score_clips([reference], [self.text], self.language)
        return {**found, "cer": score.cer_edits / max(1, score.cer_length)}


def read(
    samples: NDArray[np.int16], whispers: Sequence[Whisper], reference: str | None, check: Check
) -> Generator[Event, None, None]:
    """Reads (samples,) at 16 kHz, the model that is furthest behind first, so that their texts come side by side.

    reference: what is said, of an example. Yields events for the page, of which the last is `end`. Raises AudioError
    for a recording of next to nothing.
    """
    seconds = len(samples) / SAMPLE_RATE
    if seconds < LEAST_S:
        raise AudioError(f"holds {seconds:.4f} s of audio; there is nothing to transcribe")
    yield {"seconds": round(seconds, 2), "spectrogram": spectrogram(samples, whispers[0])}
    models = [_begin(whisper, samples, check) for whisper in whispers]
    rows, waiting = Rows(len(models)), list(range(len(models)))
    while waiting:
        i = min(waiting, key=lambda i: models[i].done_s)
        if piece := models[i].next():
            if row := rows.add(i, piece):
                yield _row(row, models, reference)
        else:
            waiting.remove(i)
        yield {"model": i, "done_s": models[i].done_s, "took_s": round(models[i].took_s, 2)}
    if any(rest := rows.rest()):
        yield _row(rest, models, reference)
    yield {"end": [model.result(reference) for model in models]}


def _begin(whisper: Whisper, samples: NDArray[np.int16], check: Check) -> _Model:
    segments: Segments = choose_reading(whisper).segments if is_long(whisper, samples) else "pauses"
    return _Model(whisper, segments, _pieces(whisper, samples, segments, check))


def _pieces(whisper: Whisper, samples: NDArray[np.int16], segments: Segments, check: Check) -> Iterator[Piece]:
    """The pieces of a recording, of which half a minute to a minute is read at a time."""
    batch_size = CPU_BATCH if whisper.model.device.type == "cpu" else GPU_BATCH
    seconds, step = len(samples) / SAMPLE_RATE, SECTION_S * SAMPLE_RATE
    decoded = (Part(to_float(samples[at : at + step]), seconds) for at in range(0, len(samples), step))
    for section in sections_of(decoded, SECTION_S):
        for piece in transcribe_pieces(whisper, section.samples, batch_size, lambda _: check(), segments=segments):
            yield moved(piece, section.start / SAMPLE_RATE)


def _row(row: Sequence[Sequence[Piece]], models: Sequence[_Model], reference: str | None) -> dict[str, Any]:
    """A row for the page: for each model its text in parts, and the windows and doubts of its pieces.

    A text is compared with the reference, or with that of the first model, which is compared with the second.
    """
    texts = [confidences(pieces, one.separator, one.language) for pieces, one in zip(row, models, strict=True)]
    shown = []
    for i, ((text, known), pieces, one) in enumerate(zip(texts, row, models, strict=True)):
        others = [reference] if reference is not None else [text for text, _ in (texts[:1] if i else texts[1:2])]
        divided = parts(text, known, others[0] if others else None, one.language)
        windows = [[piece.start_s, piece.end_s, one.window_s(piece), piece.doubt] for piece in pieces]
        differences = sum(kind in (DIFFERENT, MISSING) for kind, _ in groupby(part.kind for part in divided))
        shown.append({"parts": divided, "pieces": windows, "differences": differences})
    pieces = [piece for pieces in row for piece in pieces]
    times = {"start_s": min(piece.start_s for piece in pieces), "end_s": max(piece.end_s for piece in pieces)}
    return {"row": {**times, "models": shown}}


def spectrogram(samples: NDArray[np.int16], whisper: Whisper) -> dict[str, Any]:
    """The log-Mel of (samples,) at 16 kHz for the page: bytes of mels times columns, the highest mel first.

    Long recordings have fewer columns than frames; each is the mean of some. 0 is the faintest value, 255 the loudest.
    """
    mels = whisper.processor.num_mel_bins
    per_column = ceil(len(samples) / HOP_LENGTH / COLUMNS)
    step = max(1, FRAMES_AT_ONCE // per_column) * per_column * HOP_LENGTH
    pooled = []
    for start in range(0, len(samples), step):
        part = to_float(samples[start : start + step])
        frames = log_mel(part, mels, ceil(len(part) / HOP_LENGTH))
        pooled.append(torch.nn.functional.avg_pool1d(frames, per_column, ceil_mode=True))
    values = torch.cat(pooled, dim=1)
    levels = ((values - values.max()) / RANGE + 1).clamp(0, 1) * 255
    data = levels.flip(0).round().to(torch.uint8).numpy().tobytes()
    return {"mels": mels, "columns": values.shape[1], "values": b64encode(data).decode()}
