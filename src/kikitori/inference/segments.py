"""Cuts recordings into pieces at their pauses.

The stock long-form algorithm relies on timestamps, and a model that was fine-tuned on short clips no longer predicts
them.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.inference.confidence import Token

# Samples between two places where a recording may be cut: 50 ms.
STEP = SAMPLE_RATE // 20
# Steps around a place over which its energy is averaged: a pause of 0.3 s.
PAUSE_STEPS = 6
# dB that a cut costs, besides the loudness of its place: between two pauses of a similar level, the fewer cuts win.
CUT_DB = 3.0
# All levels below this are equally quiet.
QUIET_DBFS = -60.0
# A long pause: so many steps between two (one second, with the PAUSE_STEPS of their energy) are at most so much louder
# than the quietest parts.
LONG_PAUSE_STEPS, LONG_PAUSE_DB = 14, 6.0
# Seconds that a piece has at least; a shorter one gives a model too little context.
SHORTEST_S = 1.0


@dataclass(frozen=True)
class Piece:
    """The text of a piece of a recording, from start_s to end_s.

    doubt: why it may be wrong, one of `kikitori.inference.checks`; empty if nothing speaks against it.
    tokens: joined, their texts are the text: they hold nothing of a repetition that was removed from it, and there are
    none of a piece without speech. no_speech: the probability that it holds no speech. mean_logprob: the mean log
    probability of all tokens that were generated. A piece that was not read, or by a beam search, has none of these.
    """

    start_s: float
    end_s: float
    text: str
    doubt: str
    tokens: tuple[Token, ...] = ()
    no_speech: float | None = None
    mean_logprob: float | None = None


def split_at_pauses(samples: Tensor, longest_s: float, at_long_pauses: bool = False) -> list[slice]:
    """Splits (samples,) at 16 kHz into pieces of at most longest_s: cut at its quietest moments, and as seldom as that.

    Of all ways to cut, the one with the lowest sum over its cuts is taken, of dB above the quietest parts and CUT_DB.
    at_long_pauses: whether every pause of a second or more ends a piece as well.
    """
    longest = max(1, int(longest_s * SAMPLE_RATE) // STEP)
    loudness = loudness_db(samples)
    above_quiet = loudness - max(np.quantile(loudness, 0.05), QUIET_DBFS)
    ends = [0, *(_long_pauses(above_quiet) if at_long_pauses else []), len(loudness) - 1]
    cuts = [cut for start, end in pairwise(ends) for cut in _cheapest_cuts(above_quiet, start, end, longest)]
    return [slice(start * STEP, min(end * STEP, len(samples))) for start, end in pairwise([0, *cuts])]


def _long_pauses(above_quiet: NDArray[np.float64]) -> list[int]:
    """Returns the step in the middle of each long pause that is not the beginning or the end of the recording."""
    around = np.pad(above_quiet, LONG_PAUSE_STEPS // 2, constant_values=np.inf)
    is_pause = sliding_window_view(around, LONG_PAUSE_STEPS + 1).max(axis=1) < LONG_PAUSE_DB
    edges = np.flatnonzero(np.diff(np.pad(is_pause, 1).astype(int)))
    return [int(start + end) // 2 for start, end in edges.reshape(-1, 2)]


def _cheapest_cuts(above_quiet: NDArray[np.float64], start: int, end: int, longest: int) -> list[int]:
    """Returns the steps where the part from start to end is cut, and its end."""
    steps = end - start
    shortest = max(1, min(round(SHORTEST_S * SAMPLE_RATE / STEP), longest // 3))
    # Among the quietest places, how quiet they are matters little.
    cost = np.maximum(above_quiet, 0.02 * above_quiet)[start : end + 1] + CUT_DB
    # lowest[i]: the sum of the cuts up to step i, if the last is there; origin[i]: the one before it.
    lowest, origin = np.full(steps + 1, np.inf), np.zeros(steps + 1, int)
    lowest[0] = cost[-1] = 0
    for at in range(min(shortest, steps), steps + 1):
        first = max(0, at - longest)
        origin[at] = first + lowest[first : max(at - shortest, 0) + 1].argmin()
        lowest[at] = lowest[origin[at]] + cost[at]
    cuts = [end]
    while origin[cuts[-1] - start]:
        cuts.append(start + int(origin[cuts[-1] - start]))
    return cuts[::-1]


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
