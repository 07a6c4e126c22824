"""Turns audio files into waveforms: decodes, mixes to mono, resamples to 16 kHz and clamps.

Stored audio is int16 in steps of 1/32768, so 16-bit files at 16 kHz are stored without loss.
"""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchaudio.transforms import Resample

from kikitori.audio.decoder_process import (
    SAMPLE_RATE,
    AudioError,
    error_reason,
    mono_blocks,
    open_recording,
    read_bytes,
)

FULL_SCALE = 32_768
# Part of the audio cache's key: increase the number whenever decoding gives other samples for the same file.
DECODER = "soundfile, mean of channels, torchaudio sinc_interp_hann, int16, 2"


def decode(source: Path | bytes) -> Tensor:
    """Decodes an mp3, wav, flac, ogg or opus file to (samples,) float32 at 16 kHz in [-1, 1], mono.

    It runs in this process. For untrusted files use `decoder_pool.Decoders` and `waveform`.
    Raises AudioError if the file is empty, truncated or cannot be decoded, or if its values are no audio.
    """
    try:
        with open_recording(read_bytes(source) if isinstance(source, Path) else source) as file:
            samples = np.concatenate([np.empty(0, np.float32), *mono_blocks(file)])
            return waveform(samples, file.samplerate)
    except Exception as error:  # libsndfile, the system and damaged bytes raise errors of many classes
        raise AudioError(error_reason(error)) from error


def waveform(samples: NDArray[np.float32], rate: int) -> Tensor:
    """Resamples (samples,) mono at `rate` Hz to (samples,) float32 at 16 kHz, clamped to [-1, 1]."""
    resampled = torch.from_numpy(samples)
    if rate != SAMPLE_RATE and len(samples):
        resampled = _resampler(rate)(resampled)
    return resampled.clamp(-1.0, 1.0)


@cache
def _resampler(rate: int) -> Resample:
    """Cached, because computing the resampling kernel takes longer than resampling a clip."""
    return Resample(rate, SAMPLE_RATE)


def to_int16(waveform: Tensor) -> NDArray[np.int16]:
    """Quantises (samples,) float in [-1, 1] to int16. +1.0, the only value out of range, becomes 32767."""
    return (waveform * FULL_SCALE).round().clamp(-FULL_SCALE, FULL_SCALE - 1).to(torch.int16).numpy()


def to_float(pcm: NDArray[np.int16]) -> Tensor:
    """Converts (samples,) int16 to float32 in [-1, 1): the inverse of `to_int16`."""
    return torch.from_numpy(pcm.astype(np.float32)) / FULL_SCALE
