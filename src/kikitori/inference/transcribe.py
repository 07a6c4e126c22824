"""Transcribes recordings of any length."""

from dataclasses import replace
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from kikitori.audio import waveform as waveforms
from kikitori.audio.decoder_pool import Decoders
from kikitori.audio.decoder_process import AudioError
from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.inference.generate import generate_text
from kikitori.metrics.normalizer import word_separator
from kikitori.model.processor import WINDOW_KEY
from kikitori.model.whisper import Whisper, encode
from kikitori.model.window import window_from_plain

# The energy of a recording is looked at in steps of this length to find a pause.
PAUSE_S = 0.2


def split_at_pauses(waveform: Tensor, window_s: float) -> list[Tensor]:
    """Cut (samples,) at 16 kHz into pieces no longer than the window, each at the quietest moment of its last third.

    A model fine-tuned on short clips has forgotten timestamps, so the stock long-form algorithm cannot steer by them.
    """
    window, step = round(window_s * SAMPLE_RATE), round(PAUSE_S * SAMPLE_RATE)
    pieces = []
    while len(waveform) > window:
        tail = waveform[window * 2 // 3 : window]
        energy = tail[: len(tail) // step * step].reshape(-1, step).square().mean(dim=1)
        cut = window * 2 // 3 + int(energy.argmin()) * step + step // 2
        pieces.append(waveform[:cut])
        waveform = waveform[cut:]
    return [*pieces, waveform]


def transcribe(whisper: Whisper, audio: str | Path | Tensor, batch_size: int = 8) -> str:
    """The text of a recording of any length; one longer than the model's window is transcribed in pieces.

    audio: a file (mp3, wav, flac, ogg or opus), or samples: (samples,) float in [-1, 1] at 16 kHz, mono.
    batch_size: pieces that are transcribed at once.
    Raises AudioError if the file is missing or cannot be decoded, ValueError if the samples have another shape.
    """
    samples = _read_file(Path(audio)) if isinstance(audio, str | Path) else torch.as_tensor(audio, dtype=torch.float32)
    if samples.ndim != 1:
        raise ValueError(f"audio must be a file, or samples of shape (samples,), got shape {tuple(samples.shape)}")
    training = whisper.model.training
    whisper.model.eval()
    try:
        return _transcribe(whisper, samples, batch_size)
    finally:
        whisper.model.train(training)


def _read_file(path: Path) -> Tensor:
    # In a process of its own: a damaged file may crash its decoder.
    with Decoders(1) as decoders:
        try:
            return waveforms.waveform(*decoders(path.expanduser()))
        except AudioError as error:
            raise AudioError(f"{path}: {error.args[0]}") from error


@torch.inference_mode()
def _transcribe(whisper: Whisper, waveform: Tensor, batch_size: int) -> str:
    model = whisper.model
    # Training may have changed the model's windows since this Whisper was made; its configuration has the current ones.
    processor = replace(whisper.processor, window=window_from_plain(getattr(model.config, WINDOW_KEY, None)))
    whole_s = processor.window_s
    pieces = split_at_pauses(waveform, min(whole_s, processor.window.longest_s(whole_s)))
    texts = []
    # Only the last piece can be of another window than those before it.
    for _, same in groupby(pieces, lambda piece: processor.window_frames(len(piece))):
        alike = list(same)
        for some in (alike[i : i + batch_size] for i in range(0, len(alike), batch_size)):
            features = torch.stack([processor.log_mel(piece) for piece in some])
            states = encode(model, features.to(model.device, model.dtype))
            texts += generate_text(whisper, states, [len(piece) / SAMPLE_RATE for piece in some])
    return word_separator(processor.language).join(text for text in texts if text)
