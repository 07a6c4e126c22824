"""From an audio file to Whisper's log-Mel: decode, mix to mono, resample to 16 kHz, clamp, transform.

Stored audio is int16; one quantisation step is 1/32768, so that a 16 kHz, 16-bit file survives the trip bit for bit.
"""

import io
from functools import cache
from math import gcd
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchaudio.transforms import Resample
from transformers.audio_utils import mel_filter_bank

from kikitori.errors import DataError

SAMPLE_RATE = 16_000
N_FFT = 400
HOP_LENGTH = 160
FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH
FULL_SCALE = 32_768
# mp3 overshoots full scale by a part of it; floats beyond this were never scaled to [-1, 1], or are damaged.
ABSURD = 100.0
# In Hz: a quarter of what Whisper hears.
MIN_RATE = 4_000
# Values of a resampling kernel. 44.1 and 22.05 kHz need 0.07 and 0.14 million, a prime near them 700 million.
MAX_KERNEL = 16_000_000

# Part of a store's key: raise it whenever decoding gives other samples for the same file.
DECODER = "soundfile, mean of channels, torchaudio sinc_interp_hann, int16, 2"


def decode(source: Path | bytes) -> Tensor:
    """Decode an mp3, wav, flac, ogg or opus file to (samples,) float32 at 16 kHz in [-1, 1], mono.

    Raises DataError when the file is empty, cut short, cannot be decoded, or holds values that are no audio.
    """
    if isinstance(source, Path) and source.exists() and not source.is_file():
        raise DataError("is a pipe, a device or a folder, and no file")  # a pipe would be waited for
    data = source if isinstance(source, bytes) else source.read_bytes()
    if not data:
        raise DataError("the file has no bytes")
    # Asked of the bytes, because libsndfile decodes what there is of an mp3, wav or ogg and says nothing.
    if mp3_cut_short(data) or wav_cut_short(data) or ogg_cut_short(data):
        raise DataError("the file is cut short")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = file.samplerate
            samples = file.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "error_string", str(error))
        raise DataError(f"cannot be decoded: {reason}") from error
    if not (np.abs(samples) < ABSURD).all():  # nor is NaN
        raise DataError("holds values that are not finite, or far beyond full scale")
    waveform = torch.from_numpy(samples.mean(axis=1))
    if rate != SAMPLE_RATE and len(waveform):
        waveform = _resampler(rate)(waveform)
    return waveform.clamp(-1.0, 1.0)


# Bit rates in kbit/s and sampling rates in Hz in an mp3 frame's header, by MPEG version (ISO 11172-3 and 13818-3).
_MPEG1_KBPS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0)
_MPEG2_KBPS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0)
_MPEG1_HZ = (44_100, 48_000, 32_000, 0)


def mp3_cut_short(data: bytes) -> bool:
    """Whether an mp3 file ends inside a frame, as an interrupted download does. Decoders pass over it in silence."""
    at = 0
    if data[:3] == b"ID3":  # a tag's length is written seven bits a byte
        at = 10 + sum(byte << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=False))
    while at + 4 <= len(data):
        if data[at] != 0xFF or data[at + 1] & 0xE6 != 0xE2:
            return False  # a trailing tag, or not a frame of layer 3: nothing to say
        version, bits = data[at + 1] >> 3 & 3, data[at + 2]
        kbps = (_MPEG1_KBPS if version == 3 else _MPEG2_KBPS)[bits >> 4]
        hz = _MPEG1_HZ[bits >> 2 & 3] >> {3: 0, 2: 1, 0: 2}.get(version, 0)
        if not kbps or not hz:
            return False
        at += (144_000 if version == 3 else 72_000) * kbps // hz + (bits >> 1 & 1)
    return at != len(data)


def wav_cut_short(data: bytes) -> bool:
    """Whether a wav file ends before its samples do, or before they begin (RIFF: a name, a length, the chunk)."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return False
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"data":
            # A program that writes to a pipe cannot know the length and gives one near the largest.
            return len(data) < at + 8 + size < 2**31 - 2**16
        at += 8 + size + size % 2
    return True


def ogg_cut_short(data: bytes) -> bool:
    """Whether an ogg or opus file ends inside a page, or without the page that is marked as its last (RFC 3533)."""
    at, last = 0, True
    while data[at : at + 4] == b"OggS":
        lengths = data[at + 27 : at + 27 + data[at + 26]] if at + 27 <= len(data) else b""
        last = at + 27 <= len(data) and data[at + 5] & 4 != 0
        at += 27 + len(lengths) + sum(lengths)
    return at > len(data) or not last


@cache
def _resampler(rate: int) -> Resample:
    """The resampling kernel costs more than a clip's resampling, so it is made once a rate.

    Raises DataError for a rate that only a damaged header gives: the kernel, or what it makes, would fill the memory.
    """
    divisor = gcd(rate, SAMPLE_RATE)
    if rate < MIN_RATE or (rate // divisor) * (SAMPLE_RATE // divisor) > MAX_KERNEL:
        raise DataError(f"has a sampling rate of {rate} Hz; resample it to 16000 Hz")
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
