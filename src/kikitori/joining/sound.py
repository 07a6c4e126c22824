"""The samples of an example: clips with silence between them, or silence and noise that are made here."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kikitori.audio.waveform import to_float
from kikitori.augmentation.operations import to_pink
from kikitori.joining.plan import Example, Noise


def example_samples(example: Example, pcm: Callable[[int], NDArray[np.int16]], window: int) -> Tensor:
    """The waveform of an example, (samples,) float32 in [-1, 1] at 16 kHz, at most `window` samples.

    pcm: returns the int16 samples of a clip, by its index.
    """
    if example.noise:
        return noise_samples(example.noise)
    if not example.joined:
        return to_float(pcm(example.sentences[0].clip))
    samples = torch.zeros(example.samples(window))
    for clip, start, end in (*example.sentences, *([example.crossing] if example.crossing else [])):
        samples[start:end] = to_float(pcm(clip)[: end - start])
    return samples


def noise_samples(noise: Noise) -> Tensor:
    """Silence, or noise of a level: white, or pink, whose power falls with the frequency. Clipped at full scale."""
    if noise.kind == "silence":
        return torch.zeros(noise.samples)
    white = np.random.default_rng(noise.seed).standard_normal(noise.samples)
    if noise.kind == "pink noise":
        white = to_pink(white)
    level = 10 ** (noise.dbfs / 20) / np.sqrt(np.mean(white**2))
    return torch.from_numpy((white * level).clip(-1, 1).astype(np.float32))
