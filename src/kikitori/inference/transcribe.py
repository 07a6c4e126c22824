"""Transcribes recordings of any length."""

from itertools import groupby

import torch
from torch import Tensor

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.inference.generate import generate_text
from kikitori.metrics.normalizer import word_separator
from kikitori.model.whisper import Whisper, encode

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


@torch.inference_mode()
def transcribe(whisper: Whisper, waveform: Tensor, batch_size: int = 8) -> str:
    """The text of a whole recording, (samples,) at 16 kHz; one longer than the window is read piece by piece."""
    processor, model = whisper.processor, whisper.model
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
