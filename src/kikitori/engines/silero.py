"""Finds speech with silero-vad."""

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.runtime.errors import ConfigError

# Milliseconds of the shortest pause that is silenced, and of sound that stays around speech: soft beginnings and ends
# are easily missed.
PAUSE_MS, AROUND_MS = 500, 200


def load_silero() -> Callable[[Tensor], Tensor]:
    """Returns a function that silences all but the speech in (samples,) at 16 kHz; the recording stays as long.

    Silence has no text, and a recording is cut where it is quietest, so all that follows works as without it. The model
    is part of the package silero-vad; nothing is downloaded. Raises ConfigError if it is not installed.
    """
    if find_spec("silero_vad") is None:
        raise ConfigError("--pauses silero needs another package: pip install 'kikitori[silero]'")
    threads = torch.get_num_threads()
    from silero_vad import get_speech_timestamps, load_silero_vad

    torch.set_num_threads(threads)  # to which silero_vad gives 1 when it is imported
    model = load_silero_vad()
    around = {"min_silence_duration_ms": PAUSE_MS, "speech_pad_ms": AROUND_MS}

    def only_speech(samples: Tensor) -> Tensor:
        if len(samples) < SAMPLE_RATE // 10:  # it needs a few frames
            return samples
        speech = torch.zeros_like(samples)
        for part in get_speech_timestamps(samples, model, sampling_rate=SAMPLE_RATE, **around):
            speech[part["start"] : part["end"]] = samples[part["start"] : part["end"]]
        return speech

    return only_speech
