"""Bootstrap confidence intervals over clips."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

BOOTSTRAP_SAMPLES = 1000


def resampled(counts: NDArray[np.integer]) -> NDArray[np.float64]:
    """Corpus rates of bootstrap resamples over clips; equal numbers of clips are drawn alike, so that rates pair up."""
    if not len(counts):
        return np.zeros(1)
    totals = _times_drawn(len(counts)) @ counts.astype(np.float64)
    return totals[:, 0] / np.maximum(totals[:, 1], 1)


@lru_cache(maxsize=2)
def _times_drawn(clips: int) -> NDArray[np.float64]:
    """(samples, clips): how often each resample draws each clip; floats, which multiply fast and hold sums exactly."""
    drawn = np.random.default_rng(0).integers(clips, size=(BOOTSTRAP_SAMPLES, clips))
    return np.array([np.bincount(row, minlength=clips) for row in drawn], dtype=np.float64)


def interval(values: NDArray[np.float64]) -> list[float]:
    """The middle 95 % of bootstrap resamples."""
    return [float(v) for v in np.quantile(values, (0.025, 0.975))]
