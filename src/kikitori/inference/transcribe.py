"""Transcribes recordings of any length."""

from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from kikitori.audio.decoder_pool import Decoders
from kikitori.audio.formats import AudioError
from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.inference.generate import generate_text
from kikitori.metrics.normalizer import word_separator
from kikitori.model.whisper import Whisper, check_whisper, encode

# Seconds over which the energy of a recording is averaged to find a pause.
PAUSE_S = 0.2


def transcribe(whisper: Whisper, audio: str | Path | Tensor, batch_size: int = 8) -> str:
    """Transcribes a recording of any length. One longer than the model's window is split at pauses.

    audio: a file (mp3, wav, flac, ogg or opus), or samples: (samples,) float in [-1, 1] at 16 kHz, mono.
    batch_size: pieces of the recording that are transcribed at a time.
    Raises AudioError if the file is missing or cannot be decoded, ValueError for samples of another shape or type.
    """
    check_whisper(whisper, "transcribe")
    samples = _read_file(Path(audio).expanduser()) if isinstance(audio, str | Path) else torch.as_tensor(audio)
    if samples.ndim != 1:
        raise ValueError(f"audio must be a file, or samples of shape (samples,), got shape {tuple(samples.shape)}")
    if not samples.is_floating_point():
        raise ValueError(
            f"the samples are {samples.dtype}; they must be float in [-1, 1]: for 16-bit audio pass samples / 32768"
        )
    samples = samples.to(torch.float32)
    training = whisper.model.training
    whisper.model.eval()
    try:
        return _transcribe(whisper, samples, batch_size)
    finally:
        whisper.model.train(training)


def split_at_pauses(samples: Tensor, window_s: float) -> list[Tensor]:
    """Splits (samples,) at 16 kHz into pieces that fit the window, each at the quietest moment of its last third.

    The stock long-form algorithm relies on timestamps, and a model that was fine-tuned on short clips no longer
    predicts them.
    """
    window, step = round(window_s * SAMPLE_RATE), round(PAUSE_S * SAMPLE_RATE)
    pieces = []
    while len(samples) > window:
        tail = samples[window * 2 // 3 : window]
        energy = tail[: len(tail) // step * step].reshape(-1, step).square().mean(dim=1)
        cut = window * 2 // 3 + int(energy.argmin()) * step + step // 2
        pieces.append(samples[:cut])
        samples = samples[cut:]
    return [*pieces, samples]


def _read_file(path: Path) -> Tensor:
    if not path.exists() or path.is_dir():
        fault = "is a folder" if path.is_dir() else "does not exist"
        raise AudioError(f"{path}: {fault}; give an mp3, wav, flac, ogg or opus file")
    with Decoders(1) as decoders:  # in a separate process, which a damaged file may crash
        try:
            return decoders(path)
        except AudioError as error:
            raise AudioError(f"{path}: {error.args[0]}") from error


@torch.inference_mode()
def _transcribe(whisper: Whisper, samples: Tensor, batch_size: int) -> str:
    processor, model = whisper.processor, whisper.model
    pieces = split_at_pauses(samples, min(processor.window_s, processor.window.longest_s(processor.window_s)))
    texts = []
    # Pieces of one batch must have the same window. Only that of the last piece can differ.
    for _, group in groupby(pieces, lambda piece: processor.window_frames(len(piece))):
        same_window = list(group)
        for batch in (same_window[i : i + batch_size] for i in range(0, len(same_window), batch_size)):
            features = torch.stack([processor.log_mel(piece) for piece in batch])
            states = encode(model, features.to(model.device, model.dtype))
            texts += generate_text(whisper, states, [len(piece) / SAMPLE_RATE for piece in batch])
    return word_separator(processor.language).join(text for text in texts if text)
