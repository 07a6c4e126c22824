"""The permutation test: by hand, by enumeration, and under the hypothesis that it tests."""

from itertools import product

import numpy as np
import pytest

from kikitori.metrics.sign_flip import EXACT, sign_flip_p


def counts(*edits: int, length: int = 10) -> np.ndarray:
    return np.array([(n, length) for n in edits])


def test_clips_that_all_agree_have_the_smallest_p_value() -> None:
    for n in (1, 4, 5, 6, EXACT):
        assert sign_flip_p(counts(*[2] * n), counts(*[3] * n)) == 2 / 2**n


def test_equal_systems_have_a_p_value_of_one() -> None:
    for n in (1, EXACT, EXACT + 1):
        assert sign_flip_p(counts(*range(n)), counts(*range(n))) == 1


def test_p_is_the_share_of_exchanges_that_differ_as_much() -> None:
    one = np.array([(3, 7), (0, 4), (9, 12), (2, 2), (1, 30)])
    other = np.array([(1, 7), (1, 4), (4, 12), (2, 2), (6, 30)])
    observed, extreme = abs(one[:, 0].sum() - other[:, 0].sum()), 0
    for signs in product((1, -1), repeat=5):
        extreme += abs(np.dot(signs, one[:, 0] - other[:, 0])) >= observed
    assert sign_flip_p(one, other) == extreme / 32
    assert sign_flip_p(other, one) == extreme / 32


@pytest.mark.parametrize("clips", [6, 8, 16, 40])
def test_equally_good_systems_differ_by_chance_as_often_as_the_level_says(clips: int) -> None:
    rng = np.random.default_rng(clips)
    trials = 400
    found = [
        sign_flip_p(counts(*rng.poisson(3, clips), length=20), counts(*rng.poisson(3, clips), length=20)) <= 0.05
        for _ in range(trials)
    ]
    # 5 % and three standard deviations.
    assert sum(found) / trials <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5
