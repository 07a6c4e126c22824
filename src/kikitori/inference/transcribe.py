"""Transcribes recordings of any length."""

from itertools import groupby

import torch
from torch import Tensor

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.inference.generate import generate_text
from kikitori.metrics.normalizer import word_separator
from kikitori.model.whisper import Whisper, encode

# Seconds over which the energy of a recording is averaged to find a pause.
PAUSE_S = 0.2


@torch.inference_mode()
def transcribe(whisper: Whisper, waveform: Tensor, batch_size: int = 8) -> str:
    """Transcribes a whole recording, (samples,) at 16 kHz. One longer than the window is split at pauses.

    batch_size: pieces of the recording that are transcribed at a time.
    """
    processor, model = whisper.processor, whisper.model
    pieces = split_at_pauses(waveform, min(processor.window_s, processor.window.longest_s(processor.window_s)))
    texts = []
    # Pieces of one batch must have the same window. Only that of the last piece can differ.
    for _, group in groupby(pieces, lambda piece: processor.window_frames(len(piece))):
        same_window = list(group)
        for batch in (same_window[i : i + batch_size] for i in range(0, len(same_window), batch_size)):
            features = torch.stack([processor.log_mel(piece) for piece in batch])
            states = encode(model, features.to(model.device, model.dtype))
            texts += generate_text(whisper, states, [len(piece) / SAMPLE_RATE for piece in batch])
    return word_separator(processor.language).join(text for text in texts if text)


def split_at_pauses(waveform: Tensor, window_s: float) -> list[Tensor]:
    """Splits (samples,) at 16 kHz into pieces that fit the window, each at the quietest moment of its last third.

    The stock long-form algorithm relies on timestamps, and a model that was fine-tuned on short clips no longer
    predicts them.
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
