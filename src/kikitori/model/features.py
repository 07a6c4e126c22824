"""Computes Whisper's log-Mel features."""

from functools import cache

import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

from kikitori.audio.decoder_process import SAMPLE_RATE

# Samples of a Fourier transform, and between two of them.
N_FFT = 400
HOP_LENGTH = 160
FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH


def log_mel(waveform: Tensor, num_mel_bins: int, frames: int) -> Tensor:
    """Computes Whisper's log10-Mel of one clip, bit-equal to the reference extractor of a window of `frames`.

    waveform: (samples,) float32 at 16 kHz in [-1, 1]; samples beyond the window are dropped.
    Returns (mels, frames) float32. Only frames that contain samples of the clip are computed; the rest of the window is
    silence, whose value is a constant. Source: Radford et al. 2022, sec. 2.2; transformers' `WhisperFeatureExtractor`.
    """
    window_samples = frames * HOP_LENGTH
    waveform = waveform[:window_samples]
    # A frame spans N_FFT / 2 samples to either side of its centre, so silence begins after this many frames.
    speech_frames = min(frames, (len(waveform) + N_FFT // 2 - 1) // HOP_LENGTH + 1)
    # Another N_FFT zeros, so that the reflection at the right end does not reach the frames that are kept.
    padded = min(window_samples, speech_frames * HOP_LENGTH + N_FFT)
    waveform = torch.nn.functional.pad(waveform, (0, padded - len(waveform)))
    spectrum = torch.stft(waveform, N_FFT, HOP_LENGTH, window=_hann(), return_complex=True)
    power = (spectrum[:, :speech_frames].abs() ** 2).contiguous()
    log_power = torch.clamp(mel_filters(num_mel_bins) @ power, min=1e-10).log10()
    # The floor depends on the loudest bin of the whole window, including silence (1e-10).
    floor = torch.clamp(log_power.max(), min=-10.0) - 8.0
    silence = (torch.clamp(floor, min=-10.0) + 4.0) / 4.0
    log_power = (torch.maximum(log_power, floor) + 4.0) / 4.0
    return torch.cat([log_power, silence.expand(num_mel_bins, frames - speech_frames)], dim=1)


@cache
def mel_filters(num_mel_bins: int) -> Tensor:
    """Returns the Slaney-normalised triangular filters of Whisper's training, (mels, 201)."""
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
