"""The line that states how long a training is."""

import pytest

from kikitori.steps.announcements import epochs
from kikitori.steps.length import Length


@pytest.mark.parametrize(
    ("steps", "per_epoch", "step", "text"),
    [
        (6, 3, 0, "2 epochs"),
        (3, 3, 0, "1 epoch"),
        (4000, 188, 0, "21.3 epochs"),
        (200, 3, 0, "66.7 epochs"),
        (10, 4000, 0, "0.0025 epochs"),
        # Resumed, or trained further.
        (9, 3, 6, "1 of 3 epochs"),
        (16, 4, 9, "1.75 of 4 epochs"),
    ],
)
def test_epochs_are_those_from_here_on(steps: int, per_epoch: int, step: int, text: str) -> None:
    assert epochs(Length(steps, per_epoch, 1).facts(), step) == text
