"""Reads recordings with one model in two ways: in the windows it was trained in, and as stock tools do, in 30 s."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import inf
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from kikitori.guard.recordings import CLIPS, OWN, READINGS, STAMPS, STOCK, Recording
from kikitori.inference.generate import generate, language_probabilities, limited_text
from kikitori.inference.transcribe import joined, transcribe_pieces
from kikitori.model.features import HOP_LENGTH, log_mel
from kikitori.model.processor import Processor
from kikitori.model.whisper import Whisper, encode
from kikitori.model.window import FULL, Window

# Seconds between two timestamps that follow each other in the vocabulary.
STAMP_S = 0.02


@dataclass(frozen=True)
class Job:
    """Recordings that are read at once, in one of READINGS; those of STAMPS with timestamps.

    with_own: whether the rows of OWN are given as well for recordings that have the full window there, too. Their texts
    then differ by the limit of text per second alone, and need not be generated again.
    """

    reading: str
    recordings: list[Recording]
    with_own: bool = False


def jobs(
    recordings: Sequence[Recording], processor: Processor, batch_size: int, readings: Sequence[str] = READINGS
) -> list[Job]:
    """The readings of every recording. batch_size: recordings of the full window that are read at once."""
    found: list[Job] = []
    for reading in readings:
        window = processor.window if reading == OWN else FULL

        def frames(recording: Recording, window: Window = window) -> int:
            return window.frames(len(recording.samples), processor.frames)

        def alike(recording: Recording) -> tuple[bool, str, int]:
            return recording.set == STAMPS, recording.language, frames(recording)

        short = [recording for recording in recordings if not recording.is_long]
        # Timestamps need the model's full window: stock tools know no other.
        short = [recording for recording in short if recording.set != STAMPS or reading == STOCK]
        both = OWN in readings and STOCK in readings
        if both and reading == OWN:
            short = [recording for recording in short if frames(recording) < processor.frames]
        for (_, _, width), group in groupby(sorted(short, key=alike), alike):
            same, size = list(group), max(1, batch_size * processor.frames // width)
            found += [Job(reading, same[i : i + size], both) for i in range(0, len(same), size)]
        found += [Job(reading, [recording]) for recording in recordings if recording.is_long]
    return found


@dataclass(frozen=True)
class Jobs:
    """Jobs as a loader: of a list, Lightning would take each item for one."""

    jobs: Sequence[Job]

    def __len__(self) -> int:
        return len(self.jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self.jobs)


class Reader(pl.LightningModule):
    """Predicts the rows of a job: what a model reads.

    A row names its recording and set, the reading, seconds, reference and hypothesis; of CLIPS in the full window also
    the language that the model detects, of STAMPS the timestamps in seconds.
    """

    def __init__(self, whisper: Whisper) -> None:
        super().__init__()
        self.whisper = whisper
        self.model = whisper.model

    def transfer_batch_to_device(self, batch: Job, device: torch.device, dataloader_idx: int) -> Job:
        return batch

    def predict_step(self, job: Job, batch_idx: int) -> list[dict[str, Any]]:
        """The row of each recording."""
        read = self._long if job.recordings[0].is_long else self._short
        if job.recordings[0].set == STAMPS:
            read = self._stamps
        language = job.recordings[0].language
        whisper = replace(self.whisper, processor=self.whisper.processor.of(language))
        if job.reading == STOCK:  # stock tools have neither
            whisper = replace(whisper, processor=replace(whisper.processor, window=FULL), max_tokens_per_s=inf)
        rows, text_language = [], whisper.processor.text_language
        for recording, found in zip(job.recordings, list(read(whisper, job)), strict=True):
            own = found.pop(OWN, None)
            rows.append(_row(recording, job.reading, text_language, found))
            rows += [_row(recording, OWN, text_language, {"hypothesis": own})] if own is not None else []
        return rows

    def _short(self, whisper: Whisper, job: Job) -> Iterator[dict[str, Any]]:
        states = encode(self.model, self._features(whisper, job))
        generated = generate(whisper, states, [recording.seconds for recording in job.recordings])
        languages = detect_language(whisper, states) if job.reading == STOCK else []
        for i, (row, recording) in enumerate(zip(generated, job.recordings, strict=True)):
            found = {"detected": languages[i]} if languages and recording.set == CLIPS else {}
            if (
                job.with_own
                and self.whisper.processor.window_frames(len(recording.samples)) == whisper.processor.frames
            ):
                found[OWN] = limited_text(self.whisper, row, recording.seconds)
            yield {"hypothesis": row.text, **found}

    def _long(self, whisper: Whisper, job: Job) -> Iterator[dict[str, Any]]:
        for recording in job.recordings:
            if job.reading == OWN:
                yield {"hypothesis": joined(whisper, transcribe_pieces(whisper, recording.samples, segments="pauses"))}
            else:
                yield {"hypothesis": self._sequential(whisper, recording)}

    def _sequential(self, whisper: Whisper, recording: Recording) -> str:
        """The text by transformers' long-form decoding, or window by window for a vocabulary without timestamps."""
        processor = whisper.processor
        if processor.timestamp_begin is None:
            pieces = recording.samples.split(processor.frames * HOP_LENGTH)
            parts = [replace(recording, samples=piece, is_long=False) for piece in pieces]
            rows = self._short(whisper, Job(STOCK, parts))
            return "".join(row["hypothesis"] for row in rows)
        frames = -(-len(recording.samples) // HOP_LENGTH)
        features = log_mel(recording.samples, processor.num_mel_bins, max(frames, processor.frames))[None]
        mask = torch.ones(1, features.shape[2], dtype=torch.long)
        return processor.decode(self._with_stamps(processor, features, attention_mask=mask.to(self.device)))[0]

    def _stamps(self, whisper: Whisper, job: Job) -> Iterator[dict[str, Any]]:
        processor = whisper.processor
        tokens = self._with_stamps(processor, self._features(whisper, job).cpu())
        first = processor.timestamp_begin
        assert first is not None
        for text, row in zip(processor.decode(tokens), tokens.tolist(), strict=True):
            stamps = [round((token - first) * STAMP_S, 2) for token in row if token >= first]
            yield {"hypothesis": text, "stamps": stamps}

    def _with_stamps(self, processor: Processor, features: Tensor, **more: Any) -> Tensor:
        settings = {"language": processor.language, "task": processor.task, "return_timestamps": True, "num_beams": 1}
        return self.model.generate(features.to(self.device, self.model.dtype), **settings, **more)

    def _features(self, whisper: Whisper, job: Job) -> Tensor:
        features = torch.stack([whisper.processor.log_mel(recording.samples) for recording in job.recordings])
        return features.to(self.device, self.model.dtype)


def _row(recording: Recording, reading: str, text_language: str, found: dict[str, Any]) -> dict[str, Any]:
    """A row with the facts of its recording."""
    return {
        "set": recording.set,
        "recording": recording.name,
        "reading": reading,
        "language": recording.language,
        "text_language": text_language,
        "seconds": round(recording.seconds, 2),
        "reference": recording.text,
        **({"joints": list(recording.joints_s)} if recording.set == STAMPS else {}),
        **({"repeats": True} if recording.repeats else {}),
        **found,
    }


def detect_language(whisper: Whisper, states: Tensor) -> list[str]:
    """Whisper's code of the most probable language of each row of (batch, positions, d_model)."""
    return [max(row, key=row.__getitem__) for row in language_probabilities(whisper, states)]
