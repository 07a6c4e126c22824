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
from transformers.audio_utils import mel_filter_bank

from kikitori.errors import DataError
from kikitori.sound import SAMPLE_RATE, contents, mono, opened, reason

N_FFT = 400
HOP_LENGTH = 160
FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH
FULL_SCALE = 32_768
# Part of a store's key: raise it whenever decoding gives other samples for the same file.
DECODER = "soundfile, mean of channels, torchaudio sinc_interp_hann, int16, 2"


def decode(source: Path | bytes) -> Tensor:
    """Decode an mp3, wav, flac, ogg or opus file to (samples,) float32 at 16 kHz in [-1, 1], mono.

    In this process: a file of strangers, which may take it down, goes through `kikitori.decoders` and `waveform`.
    Raises DataError when the file is empty, cut short, cannot be decoded, or holds values that are no audio.
    """
    try:
        with opened(contents(source) if isinstance(source, Path) else source) as file:
            samples = np.concatenate([np.empty(0, np.float32), *mono(file)])
            return waveform(samples, file.samplerate)
    except Exception as error:  # libsndfile's, the system's and the bytes' own
        raise DataError(reason(error)) from error


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


@cache
def mel_filters(num_mel_bins: int) -> Tensor:
    """Slaney-normalised triangular filters, (mels, 201), as Whisper was trained with."""
    filters = mel_filter_bank(
        num_frequency_bins=1 + N_FFT // 2,
        num_mel_filters=num_mel_bins,
        min_frequency=0.0,
        max_frequency=8000.0,
        sampling_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters).to(torch.float32).T


@cache
def _hann() -> Tensor:
    return torch.hann_window(N_FFT)


def log_mel(waveform: Tensor, num_mel_bins: int, frames: int) -> Tensor:
    """Whisper's log10-Mel of one clip in a window of `frames`, equal to the bit to the reference extractor.

    waveform: (samples,) float32 at 16 kHz in [-1, 1]; samples beyond the window are cut off.
    Returns (mels, frames) float32. Only the frames that hear the clip are computed: the rest of the window is silence,
    whose value is known. Source: Radford et al. 2022, section 2.2; transformers' `WhisperFeatureExtractor`.
    """
    window_samples = frames * HOP_LENGTH
    waveform = waveform[:window_samples]
    # A frame reaches N_FFT / 2 samples to either side of its centre, so silence starts this many frames in.
    heard = min(frames, (len(waveform) + N_FFT // 2 - 1) // HOP_LENGTH + 1)
    # One frame of zeros more, so that the reflection at the right end stays out of the frames that are kept.
    padded = min(window_samples, heard * HOP_LENGTH + N_FFT)
    waveform = torch.nn.functional.pad(waveform, (0, padded - len(waveform)))
    spectrum = torch.stft(waveform, N_FFT, HOP_LENGTH, window=_hann(), return_complex=True)
    power = (spectrum[:, :heard].abs() ** 2).contiguous()
    log_power = torch.clamp(mel_filters(num_mel_bins) @ power, min=1e-10).log10()
    # The floor hangs on the loudest bin of the whole window, silence (1e-10) included.
    floor = torch.clamp(log_power.max(), min=-10.0) - 8.0
    silence = (torch.clamp(floor, min=-10.0) + 4.0) / 4.0
    log_power = (torch.maximum(log_power, floor) + 4.0) / 4.0
    return torch.cat([log_power, silence.expand(num_mel_bins, frames - heard)], dim=1)
