"""Bootstrap confidence intervals over clips."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Resamples of an interval.
BOOTSTRAP_SAMPLES = 1000


def resampled(counts: NDArray[np.integer]) -> NDArray[np.float64]:
    """Returns the corpus error rate of each bootstrap resample over clips, (samples,).

    counts: (clips, 2), edits and reference length of each clip. For equal numbers of clips, all calls draw the same
    resamples, so that the rates of two systems on the same clips are paired.
    """
    if not len(counts):
        return np.zeros(1)
    totals = _draw_counts(len(counts)) @ counts.astype(np.float64)
    return totals[:, 0] / np.maximum(totals[:, 1], 1)


def interval(values: NDArray[np.float64]) -> list[float]:
    """Returns the limits of the central 95 % of the values of bootstrap resamples."""
    return [float(v) for v in np.quantile(values, (0.025, 0.975))]


@lru_cache(maxsize=2)
def _draw_counts(clips: int) -> NDArray[np.float64]:
    """Returns how often each resample draws each clip, (samples, clips). Floats multiply fast, and these are exact."""
    drawn = np.random.default_rng(0).integers(clips, size=(BOOTSTRAP_SAMPLES, clips))
    return np.array([np.bincount(row, minlength=clips) for row in drawn], dtype=np.float64)
