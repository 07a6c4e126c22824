"""The changes of a waveform: functions of (samples,) float32 at 16 kHz; only the kinds of noise draw random numbers.

A change keeps the number of samples, but for `change_speed`, and keeps speech where it is: filters are symmetric, and
the delay of a codec or of a room is cut off. Values may exceed full scale until `fit_full_scale`.
"""

import io
from functools import cache, lru_cache

import numpy as np
import soundfile
import torch
import torchaudio.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor
from torchaudio.transforms import Resample

from kikitori.audio.waveform import SAMPLE_RATE, to_float
from kikitori.augmentation.settings import SPEED_STEPS

# Hz: the band of a telephone line, and its sampling rate.
TELEPHONE_BAND = (300, 3400)
TELEPHONE_RATE = 8_000
# Taps and shape of the band's filter: what is 30 Hz outside of the band is 60 dB lower.
TAPS, KAISER_BETA = 1025, 5.65
# Zero crossings on either side of a resampler's kernel, for a steep edge between the band and 4 kHz.
RESAMPLER_WIDTH = 32
MU_LAW_LEVELS = 256
# kbit/s: libsndfile takes a bit rate as a share of this range.
MP3_MIN_KBPS, MP3_MAX_KBPS = 8, 160
# Samples that an mp3 begins with besides its audio: 576 of the encoder's and 529 of the decoder's delay. Decoders cut
# them off where the first frame states them, for which it is too small below 40 kbit/s.
MP3_DELAY = 576 + 529
# Fourier transforms have a multiple of this size, which takes a fifth of the time that any size takes.
FFT_SIZE = 4_096
# Of a peak, -60 dB below full scale: what stays below it is taken for silence.
SILENT_PEAK = 1e-3


def change_speed(waveform: Tensor, factor: float, max_samples: int) -> Tensor:
    """Plays a clip `factor` times as fast, which changes its pitch, too: (samples,) to (ceil(samples / factor),).

    factor: in steps of 0.01. A clip that would have more than `max_samples` is slowed less, or not at all.
    """
    needed = -(-SPEED_STEPS * len(waveform) // max_samples)
    steps = max(round(factor * SPEED_STEPS), min(needed, SPEED_STEPS))
    return waveform if steps == SPEED_STEPS else _speed_resampler(steps)(waveform)


@lru_cache(maxsize=64)
def _speed_resampler(steps: int) -> Resample:
    return Resample(steps, SPEED_STEPS)


def reverberate(waveform: Tensor, response: Tensor) -> Tensor:
    """Places a clip in a room: convolves it with the room's impulse response, (any,) float32.

    The direct sound, the response's largest value, stays where it was; the energy stays the same.
    """
    direct = int(response.abs().argmax())
    wet = _convolve(waveform, response, direct)
    energy = wet.norm()
    return wet * (waveform.norm() / energy) if energy > 0 else waveform


def _convolve(waveform: Tensor, kernel: Tensor, delay: int) -> Tensor:
    """The convolution without its first `delay` samples, as long as the waveform."""
    size = _fft_size(len(waveform) + len(kernel) - 1)
    padded = torch.nn.functional.pad(waveform, (0, size - len(waveform) - len(kernel) + 1))
    return F.fftconvolve(padded, kernel)[delay : delay + len(waveform)]


def _fft_size(samples: int) -> int:
    return -(-samples // FFT_SIZE) * FFT_SIZE


def add_noise(waveform: Tensor, noise: Tensor, snr_db: float) -> Tensor:
    """Adds noise, (samples,), so that the energy of the clip is `snr_db` above that of the noise.

    A silent clip or noise has no such ratio, and the clip is returned as it is.
    """
    if not waveform.any() or not noise.abs().max() > SILENT_PEAK:
        return waveform
    return F.add_noise(waveform, noise, torch.tensor(snr_db))


def white_noise(samples: int, rng: np.random.Generator) -> Tensor:
    """Noise with the same power at all frequencies, (samples,)."""
    return torch.from_numpy(rng.standard_normal(samples, dtype=np.float32))


def pink_noise(samples: int, rng: np.random.Generator) -> Tensor:
    """Noise whose power halves with each octave, (samples,), as that of many rooms and machines."""
    white = rng.standard_normal(_fft_size(samples))
    return torch.from_numpy(to_pink(white)[:samples].astype(np.float32))


def to_pink(white: NDArray[np.float64]) -> NDArray[np.float64]:
    """Makes pink noise of white noise, (samples,), by the square root of each frequency."""
    spectrum = np.fft.rfft(white)
    return np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), len(white))


def stretch_of(recording: NDArray[np.int16], samples: int, place: float) -> Tensor:
    """A part of a recording, (samples,), or a repetition of one that is shorter.

    place: in [0, 1), where the part begins among the possible places.
    """
    length = len(recording)
    start = int(place * (length - samples + 1 if length >= samples else length))
    part = recording[start : start + samples]
    if length < samples:
        part = np.take(recording, np.arange(start, start + samples), mode="wrap")
    return to_float(part)


def change_gain(waveform: Tensor, gain_db: float) -> Tensor:
    """Makes a clip louder or quieter."""
    return F.gain(waveform, gain_db)


def telephone(waveform: Tensor, with_mu_law: bool = False) -> Tensor:
    """Sends a clip through a telephone line: 300 to 3,400 Hz, sampled at 8 kHz.

    with_mu_law: whether its samples are also coded in 8 bits, as `mu_law` does.
    """
    narrow = _resampler(SAMPLE_RATE, TELEPHONE_RATE)(_convolve(waveform, _telephone_filter(), TAPS // 2))
    if with_mu_law:
        narrow = mu_law(narrow)
    return _resampler(TELEPHONE_RATE, SAMPLE_RATE)(narrow)[: len(waveform)]


@cache
def _resampler(rate: int, new_rate: int) -> Resample:
    return Resample(rate, new_rate, lowpass_filter_width=RESAMPLER_WIDTH)


@cache
def _telephone_filter() -> Tensor:
    """(TAPS,) of a band-pass filter without phase shift: the difference of two low-pass filters, windowed."""
    times = np.arange(TAPS) - TAPS // 2
    low, high = (2 * hertz / SAMPLE_RATE for hertz in TELEPHONE_BAND)
    taps = (high * np.sinc(high * times) - low * np.sinc(low * times)) * np.kaiser(TAPS, KAISER_BETA)
    return torch.from_numpy(taps.astype(np.float32))


def mu_law(waveform: Tensor) -> Tensor:
    """Codes samples in 8 bits by the mu-law of telephony (ITU-T G.711, in its continuous form), and decodes them."""
    codes = F.mu_law_encoding(fit_full_scale(waveform), MU_LAW_LEVELS)
    return F.mu_law_decoding(codes, MU_LAW_LEVELS)


def mp3(waveform: Tensor, kbps: int) -> Tensor:
    """Codes a clip as mp3 of a constant bit rate, one of `settings.MP3_KBPS`, and decodes it, in memory."""
    file = io.BytesIO()
    level = (MP3_MAX_KBPS - kbps) / (MP3_MAX_KBPS - MP3_MIN_KBPS)
    samples = fit_full_scale(waveform).numpy()
    soundfile.write(file, samples, SAMPLE_RATE, format="MP3", compression_level=level, bitrate_mode="CONSTANT")
    file.seek(0)
    decoded, _ = soundfile.read(file, dtype="float32")
    start = 0 if len(decoded) == len(samples) else MP3_DELAY
    decoded = decoded[start : start + len(samples)]
    return torch.from_numpy(np.pad(decoded, (0, len(samples) - len(decoded))))


def fit_full_scale(waveform: Tensor) -> Tensor:
    """Scales a clip to a peak of 1 if it exceeds that, so that nothing is clipped."""
    peak = waveform.abs().max()
    return waveform / peak if peak > 1 else waveform
