"""Bootstrap resamples: the same draws whether they are kept or not, in limited memory."""

import tracemalloc

import numpy as np
import pytest

from kikitori.metrics import bootstrap


@pytest.mark.parametrize("clips", [1, 7, 1000])
def test_draws_are_the_same_whether_they_are_kept_or_not(monkeypatch: pytest.MonkeyPatch, clips: int) -> None:
    counts = np.random.default_rng(1).integers(0, 50, size=(clips, 2))
    kept = bootstrap.resampled(counts)
    monkeypatch.setattr(bootstrap, "MOST_KEPT", 0)
    assert np.array_equal(bootstrap.resampled(counts), kept)


def test_resamples_of_many_clips_take_little_memory() -> None:
    tracemalloc.start()
    bootstrap.resampled(np.ones((50_000, 2), np.int64))  # all draws of them take 400 MB
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
