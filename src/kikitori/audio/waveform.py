"""From an audio file to Whisper's log-Mel: decode, mix to mono, resample to 16 kHz, clamp, transform.

Stored audio is int16; one quantisation step is 1/32768, so that a 16 kHz, 16-bit file survives the trip bit for bit.
"""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchaudio.transforms import Resample

from kikitori.audio.decoder_process import SAMPLE_RATE, AudioError, mono, open_recording, read_bytes, reason

FULL_SCALE = 32_768
# Part of a store's key: raise it whenever decoding gives other samples for the same file.
DECODER = "soundfile, mean of channels, torchaudio sinc_interp_hann, int16, 2"


def decode(source: Path | bytes) -> Tensor:
    """Decode an mp3, wav, flac, ogg or opus file to (samples,) float32 at 16 kHz in [-1, 1], mono.

    In this process: untrusted files go through `kikitori.audio.decoder_pool` and `waveform`.
    Raises AudioError when the file is empty, cut short, cannot be decoded, or holds values that are no audio.
    """
    try:
        with open_recording(read_bytes(source) if isinstance(source, Path) else source) as file:
            samples = np.concatenate([np.empty(0, np.float32), *mono(file)])
            return waveform(samples, file.samplerate)
    except Exception as error:  # libsndfile's, the system's and the bytes' own
        raise AudioError(reason(error)) from error


def waveform(samples: NDArray[np.float32], rate: int) -> Tensor:
    """(samples,) float32 at 16 kHz in [-1, 1] of samples at another rate in Hz."""
    at_rate = torch.from_numpy(samples)
    if rate != SAMPLE_RATE and len(samples):
        at_rate = _resampler(rate)(at_rate)
    return at_rate.clamp(-1.0, 1.0)


@cache
def _resampler(rate: int) -> Resample:
    """The resampling kernel costs more than a clip's resampling, so it is made once a rate."""
    return Resample(rate, SAMPLE_RATE)


def to_int16(waveform: Tensor) -> NDArray[np.int16]:
    """Quantise (samples,) float in [-1, 1] to int16; the one value above the range, +1.0, becomes 32767."""
    return (waveform * FULL_SCALE).round().clamp(-FULL_SCALE, FULL_SCALE - 1).to(torch.int16).numpy()


def to_float(pcm: NDArray[np.int16]) -> Tensor:
    """The inverse of `to_int16`: (samples,) float32 in [-1, 1)."""
    return torch.from_numpy(pcm.astype(np.float32)) / FULL_SCALE
