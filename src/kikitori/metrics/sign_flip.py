"""A paired permutation test of two systems on the same clips."""

import numpy as np
from numpy.typing import NDArray

# Clips up to which every exchange is counted; of more clips, DRAWS random ones.
EXACT, DRAWS = 12, 4_000


def sign_flip_p(one: NDArray[np.integer], other: NDArray[np.integer]) -> float:
    """Returns the two-sided p-value of the difference between the corpus error rates of two systems.

    one, other: (clips, 2), edits and reference length of each clip, of the same clips. If both were equally good, the
    results of each clip could be exchanged: p is the share of exchanges that give at least the observed difference. Of
    n clips it is 2 / 2^n at least, so that fewer than six never reach 0.05. All calls draw the same exchanges.
    """
    flips = _exchanges(len(one))
    shift = flips @ (other - one).astype(np.float64)
    differences = np.abs(_rate(one.sum(axis=0) + shift) - _rate(other.sum(axis=0) - shift))
    observed = abs(_rate(one.sum(axis=0)) - _rate(other.sum(axis=0)))
    extreme = int((differences >= observed - 1e-12).sum())
    # The observed assignment is one of all; of drawn ones it is counted in addition.
    return extreme / len(flips) if len(one) <= EXACT else (extreme + 1) / (len(flips) + 1)


def _exchanges(clips: int) -> NDArray[np.float64]:
    if clips <= EXACT:
        return ((np.arange(2**clips)[:, None] >> np.arange(clips)) & 1).astype(np.float64)
    return np.random.default_rng(0).integers(2, size=(DRAWS, clips)).astype(np.float64)


def _rate(totals: NDArray[np.floating] | NDArray[np.integer]) -> NDArray[np.float64]:
    edits, length = np.moveaxis(np.asarray(totals, dtype=np.float64), -1, 0)
    return np.asarray(edits / np.maximum(length, 1))
