"""Sounds that hold no speech, and speech as other microphones and lines give it: (samples,) float32 at 16 kHz.

Every sound is a function of its arguments alone, so that two models hear the same.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchaudio.functional import add_noise, resample

from kikitori.audio.waveform import SAMPLE_RATE

# Makes a sound from its seconds and a seed.
Maker = Callable[[float, int], Tensor]
# dB of full scale of the noises and tones; those of a quiet room, a street and a bad line.
LEVELS_DB = (-60.0, -40.0, -30.0, -20.0)
# Hz of the tones, as of a mains hum, a dial tone and a test signal.
TONES_HZ = (100.0, 440.0, 1000.0, 2500.0)
# Hz of the sampling rate of a telephone.
TELEPHONE_RATE = 8_000
# Zero crossings of the resampling filter on each side; torchaudio's 6 would leave sound above 4 kHz.
STEEP = 64
# Largest sample of what is scaled.
PEAK = 0.99


def silence(seconds: float, seed: int) -> Tensor:
    """Digital silence for seed 0; for others the noise of a 16-bit converter, of one step."""
    samples = torch.zeros(round(seconds * SAMPLE_RATE))
    return samples if seed == 0 else torch.from_numpy(_rng(seed).integers(-1, 2, len(samples)).astype("f4")) / 32768


def white_noise(seconds: float, seed: int) -> Tensor:
    """Noise with the same power at all frequencies, at one of LEVELS_DB."""
    return _at_level(torch.from_numpy(_rng(seed).standard_normal(round(seconds * SAMPLE_RATE))), seed)


def pink_noise(seconds: float, seed: int) -> Tensor:
    """Noise whose power falls by 3 dB an octave, like that of rooms and streets, at one of LEVELS_DB."""
    spectrum = torch.fft.rfft(white_noise(seconds, seed).double())
    frequency = torch.arange(len(spectrum)).clamp(min=1)
    return _at_level(torch.fft.irfft(spectrum / frequency.sqrt(), round(seconds * SAMPLE_RATE)), seed)


def tone(seconds: float, seed: int) -> Tensor:
    """A sine of one of TONES_HZ, at one of LEVELS_DB."""
    time = torch.arange(round(seconds * SAMPLE_RATE), dtype=torch.float64) / SAMPLE_RATE
    return _at_level(torch.sin(2 * torch.pi * TONES_HZ[seed % len(TONES_HZ)] * time), seed)


def through_telephone(samples: Tensor) -> Tensor:
    """The samples at 8 kHz, and back at 16: nothing is left above 4 kHz."""
    narrow = resample(samples, SAMPLE_RATE, TELEPHONE_RATE, lowpass_filter_width=STEEP)
    wide = resample(narrow, TELEPHONE_RATE, SAMPLE_RATE, lowpass_filter_width=STEEP)
    return wide[: len(samples)].clamp(-PEAK, PEAK)


def with_noise(samples: Tensor, snr_db: float, seed: int) -> Tensor:
    """The samples with white noise at a signal-to-noise ratio, scaled down where they would exceed full scale."""
    noise = torch.from_numpy(_rng(seed).standard_normal(len(samples))).float()
    noisy = add_noise(samples, noise, torch.tensor(snr_db)) if float(samples.square().sum()) else samples
    return noisy / max(1.0, float(noisy.abs().max()) / PEAK)


def joined(parts: Sequence[Tensor], pause_s: float) -> tuple[Tensor, list[float]]:
    """The parts one after the other with silence between them, and the second in the middle of each pause."""
    pause = torch.zeros(round(pause_s * SAMPLE_RATE))
    pieces, joints, at = [parts[0]], [], len(parts[0])
    for part in parts[1:]:
        joints.append((at + len(pause) / 2) / SAMPLE_RATE)
        pieces += [pause, part]
        at += len(pause) + len(part)
    return torch.cat(pieces), joints


def _at_level(samples: Tensor, seed: int) -> Tensor:
    """The samples at one of LEVELS_DB, by their root mean square."""
    level = 10 ** (LEVELS_DB[seed % len(LEVELS_DB)] / 20)
    return (samples * level / samples.square().mean().sqrt()).clamp(-PEAK, PEAK).float()


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)
