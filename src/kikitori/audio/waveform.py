"""Turns audio files into waveforms: decodes, mixes to mono, resamples to 16 kHz and brings them to full scale.

Stored audio is int16 in steps of 1/32768, so 16-bit files at 16 kHz are stored without loss.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import groupby
from math import gcd
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchaudio.transforms import Resample

from kikitori.audio.decoder_process import MAX_AMPLITUDE, SAMPLE_RATE, Block, blocks, error_reason, read_bytes
from kikitori.audio.formats import NOT_SAMPLES, AudioError

FULL_SCALE = 32_768
# Part of the audio cache's key: increase the number whenever decoding gives other samples for the same file.
DECODER = "soundfile, mean of channels, torchaudio sinc_interp_hann, int16, 3"
# Samples that are resampled at a time (87 s at 48 kHz), to bound the memory. Shorter recordings are one piece.
RESAMPLED_AT_ONCE = 2**22


def decode(source: Path | bytes) -> Tensor:
    """Decodes an audio file to (samples,) float32 at 16 kHz in [-1, 1], mono.

    It runs in this process. For untrusted files use `decoder_pool.Decoders`.
    Raises AudioError if the file is empty, incomplete or cannot be decoded, or if its values are no audio.
    """
    try:
        return waveform(blocks(read_bytes(source) if isinstance(source, Path) else source))
    except Exception as error:  # libsndfile, the system and damaged bytes raise errors of many classes
        raise AudioError(error_reason(error)) from error


def waveform(decoded: Iterable[Block]) -> Tensor:
    """Turns the blocks of a recording into (samples,) float32 at 16 kHz in [-1, 1].

    Lossy codecs overshoot full scale a little, which is clamped. Samples that a file holds as float are scaled.
    """
    return torch.cat([torch.empty(0), *_parts(decoded)])


def pcm(decoded: Iterable[Block]) -> NDArray[np.int16]:
    """Turns the blocks of a recording into `to_int16` of its waveform, one part at a time to bound the memory."""
    return np.concatenate([np.empty(0, np.int16), *map(to_int16, _parts(decoded))])


def _parts(decoded: Iterable[Block]) -> Iterator[Tensor]:
    """Yields a waveform in parts; that of a float file as one, since it is scaled by its peak."""
    unscaled: list[Tensor] = []
    for (rate, _, is_float), stream in groupby(decoded, lambda block: block[1:4]):
        for part in _resampled((block.samples for block in stream), rate):
            if is_float:
                unscaled.append(part)
            else:
                yield part.clamp_(-1.0, 1.0)
    if unscaled:
        yield to_full_scale(torch.cat(unscaled))


class Part(NamedTuple):
    """Samples of a waveform, and the seconds of the streams of its recording so far, decoded or not."""

    samples: Tensor
    known_s: float


def parts(decoded: Iterable[Block], peak: float) -> Iterator[Part]:
    """Yields the waveform of a recording in parts, and keeps none. peak: of all of its float samples, at least 1."""
    known_s = 0.0
    for (rate, _, is_float, stream_s), stream in groupby(decoded, lambda block: block[1:]):
        known_s += stream_s
        for part in _resampled((block.samples for block in stream), rate):
            yield Part(part / peak if is_float else part.clamp_(-1.0, 1.0), known_s)


def peak_of(samples: Tensor) -> float:
    """The largest absolute value of (samples,); 0 of none."""
    return float(samples.abs().max()) if len(samples) else 0.0


def to_full_scale(samples: Tensor) -> Tensor:
    """Scales (samples,) float to a peak of 1 if they exceed it.

    Raises AudioError for values that are not finite, or so large that they are integers or damaged.
    """
    peak = peak_of(samples)
    if not peak < MAX_AMPLITUDE:  # true for NaN, too
        raise AudioError(NOT_SAMPLES)
    return samples / peak if peak > 1 else samples


def _resampled(pieces: Iterable[NDArray[np.float32]], rate: int) -> Iterator[Tensor]:
    """Resamples one stream to 16 kHz, a part at a time with what surrounds it: as if it were done at once."""
    if rate == SAMPLE_RATE:
        yield from map(torch.from_numpy, pieces)
        return
    # `step` samples become `new` ones. A resampled value depends on fewer than `around` samples on either side.
    resample = _resampler(rate)
    step, new = rate // gcd(rate, SAMPLE_RATE), SAMPLE_RATE // gcd(rate, SAMPLE_RATE)
    around = step * (resample.width // step + 2)
    most = RESAMPLED_AT_ONCE // step * step
    held: list[NDArray[np.float32]] = []
    done = 0  # samples at the beginning of `held` that were resampled before
    for piece in pieces:
        held.append(piece)
        while sum(map(len, held)) > done + most + around:
            joined = np.concatenate(held)
            part = resample(torch.from_numpy(joined[: done + most + around]))
            yield part[done // step * new : (done + most) // step * new]
            held, done = [joined[done + most - around :]], around
    joined = np.concatenate(held) if len(held) > 1 else held[0]
    yield resample(torch.from_numpy(joined))[done // step * new :]


@lru_cache(maxsize=8)
def _resampler(rate: int) -> Resample:
    """Cached, because computing the kernel takes longer than resampling a clip; a few, of up to 64 MB each."""
    return Resample(rate, SAMPLE_RATE)


def to_int16(waveform: Tensor) -> NDArray[np.int16]:
    """Quantises (samples,) float in [-1, 1] to int16. +1.0, the only value out of range, becomes 32767."""
    return (waveform * FULL_SCALE).round().clamp(-FULL_SCALE, FULL_SCALE - 1).to(torch.int16).numpy()


def to_float(pcm: NDArray[np.int16]) -> Tensor:
    """Converts (samples,) int16 to float32 in [-1, 1): the inverse of `to_int16`."""
    return torch.from_numpy(pcm.astype(np.float32)) / FULL_SCALE
