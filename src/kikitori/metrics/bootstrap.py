"""Bootstrap confidence intervals over clips."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Resamples of an interval.
BOOTSTRAP_SAMPLES = 1000
# Clips up to which all resamples are kept in memory, 8 kB for each clip.
MOST_KEPT = 20_000


def resampled(counts: NDArray[np.integer]) -> NDArray[np.float64]:
    """Returns the corpus error rate of each bootstrap resample over clips, (samples,).

    counts: (clips, 2), edits and reference length of each clip. For equal numbers of clips, all calls draw the same
    resamples, so that the rates of two systems on the same clips are paired.
    """
    if not len(counts):
        return np.zeros(1)
    draws = _kept_draws(len(counts)) if len(counts) <= MOST_KEPT else _draws(len(counts))
    values = counts.astype(np.float64)
    totals = np.array([drawn @ values for drawn in draws])
    return totals[:, 0] / np.maximum(totals[:, 1], 1)


def interval(values: NDArray[np.float64]) -> list[float]:
    """Returns the limits of the central 95 % of the values of bootstrap resamples."""
    return [float(v) for v in np.quantile(values, (0.025, 0.975))]


def _draws(clips: int) -> Iterator[NDArray[np.float64]]:
    """Yields for each resample how often it draws each clip. Floats multiply fast, and these are exact."""
    rng = np.random.default_rng(0)
    for _ in range(BOOTSTRAP_SAMPLES):
        yield np.bincount(rng.integers(clips, size=clips), minlength=clips).astype(np.float64)


@lru_cache(maxsize=2)
def _kept_draws(clips: int) -> list[NDArray[np.float64]]:
    return list(_draws(clips))
