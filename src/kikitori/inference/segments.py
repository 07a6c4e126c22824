"""Cuts recordings into pieces at their pauses.

The stock long-form algorithm relies on timestamps, and a model that was fine-tuned on short clips no longer predicts
them.
"""

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kikitori.audio.waveform import SAMPLE_RATE

# Samples between two places where a recording may be cut: 50 ms.
STEP = SAMPLE_RATE // 20
# Steps around a place over which its energy is averaged: a pause of 0.3 s.
PAUSE_STEPS = 6
# dB that a cut costs, besides the loudness of its place: between two pauses of a similar level, the fewer cuts win.
CUT_DB = 3.0
# Seconds that a piece has at least; a shorter one gives a model too little context.
SHORTEST_S = 1.0


def split_at_pauses(samples: Tensor, longest_s: float) -> list[slice]:
    """Splits (samples,) at 16 kHz into pieces of at most longest_s: cut at its quietest moments, and as seldom as that.

    Of all ways to cut, the one with the lowest sum over its cuts is taken, of dB above the quietest parts and CUT_DB.
    """
    steps, longest = -(-len(samples) // STEP), max(1, int(longest_s * SAMPLE_RATE) // STEP)
    if steps <= longest:
        return [slice(0, len(samples))]
    shortest = max(1, min(round(SHORTEST_S * SAMPLE_RATE / STEP), longest // 3))
    loudness = loudness_db(samples)
    above_quiet = loudness - np.quantile(loudness, 0.05)
    # Among the quietest places, how quiet they are matters little.
    cost = np.maximum(above_quiet, 0.02 * above_quiet) + CUT_DB
    # lowest[i]: the sum of the cuts up to step i, if the last is there; origin[i]: the one before it.
    lowest, origin = np.full(steps + 1, np.inf), np.zeros(steps + 1, int)
    lowest[0] = cost[-1] = 0
    for end in range(shortest, steps + 1):
        first = max(0, end - longest)
        origin[end] = first + lowest[first : end - shortest + 1].argmin()
        lowest[end] = lowest[origin[end]] + cost[end]
    cuts = [steps]
    while cuts[-1]:
        cuts.append(int(origin[cuts[-1]]))
    places = [min(cut * STEP, len(samples)) for cut in reversed(cuts)]
    return [slice(*pair) for pair in pairwise(places)]


def halves(samples: Tensor, piece: slice) -> list[slice]:
    """Cuts a piece at the quietest moment of its middle third."""
    loudness = loudness_db(samples[piece])
    third = len(loudness) // 3
    cut = piece.start + STEP * (third + int(loudness[third : 2 * third + 1].argmin()))
    return [slice(piece.start, cut), slice(cut, piece.stop)]


def loudness_db(samples: Tensor) -> NDArray[np.float64]:
    """Returns the level around each step, the ends included, (ceil(samples / STEP) + 1,) in dB of full scale."""
    padded = torch.nn.functional.pad(samples, (0, -len(samples) % STEP)).double()
    energy = torch.nn.functional.pad(padded.reshape(-1, STEP).square().mean(dim=1), (PAUSE_STEPS // 2,) * 2)
    return 10 * np.log10(energy.unfold(0, PAUSE_STEPS, 1).mean(dim=1).numpy() + 1e-10)
