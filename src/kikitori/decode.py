"""From log-Mel or a whole recording to text."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from kikitori.audio import SAMPLE_RATE
from kikitori.greedy import greedy
from kikitori.text import space
from kikitori.whisper import Whisper, encode

# The energy of a recording is looked at in steps of this length to find a pause.
PAUSE_S = 0.2


def read(whisper: Whisper, encoder_states: Tensor, seconds: Sequence[float]) -> list[str]:
    """The text of each row of (batch, positions, d_model), by the generation config: see `Whisper.limit_generation`.

    seconds: of speech in each row, which bound what is written where the model knows its tokens a second.
    """
    front_end, model = whisper.front_end, whisper.model
    if model.generation_config.num_beams == 1:
        return front_end.decode(greedy(model, encoder_states, front_end.prefix, whisper.caps(seconds)))
    outputs = BaseModelOutput(last_hidden_state=encoder_states)
    return front_end.decode(model.generate(encoder_outputs=outputs, language=front_end.language, task=front_end.task))


def cut_at_pauses(waveform: Tensor, window_s: float) -> list[Tensor]:
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
    front_end, model = whisper.front_end, whisper.model
    whole_s = front_end.window_s
    pieces = cut_at_pauses(waveform, min(whole_s, front_end.window.longest_s(whole_s)))
    texts = []
    # Only the last piece can be of another window than those before it.
    for _, same in groupby(pieces, lambda piece: front_end.frames_of(len(piece))):
        alike = list(same)
        for some in (alike[i : i + batch_size] for i in range(0, len(alike), batch_size)):
            features = torch.stack([front_end.log_mel(piece) for piece in some])
            states = encode(model, features.to(model.device, model.dtype))
            texts += read(whisper, states, [len(piece) / SAMPLE_RATE for piece in some])
    return space(front_end.language).join(text for text in texts if text)
