"""The length of a training, given in steps or in epochs."""

from typing import Any

import pytest

from kikitori.runtime.errors import ConfigError
from kikitori.steps.length import Length, check_schedule, training_length


def config(
    max_steps: int | None = None, max_epochs: int | None = None, every_steps: int | None = 5, every_epochs: Any = None
) -> dict[str, Any]:
    return {
        "data": {"global_batch_size": 8},
        "trainer": {"max_steps": max_steps, "max_epochs": max_epochs},
        "validation": {"every_steps": every_steps, "every_epochs": every_epochs},
        "optim": {"warmup_steps": 3},
    }


@pytest.mark.parametrize(
    ("settings", "clips", "length"),
    [
        (config(max_steps=7), 24, Length(7, 3, 5)),
        (config(max_epochs=2), 24, Length(6, 3, 5)),
        # The last batch of an epoch may be short.
        (config(max_epochs=2), 25, Length(8, 4, 5)),
        (config(max_epochs=1), 1, Length(1, 1, 5)),
        (config(max_epochs=2, every_steps=None, every_epochs=1), 25, Length(8, 4, 4)),
        (config(max_epochs=2, every_steps=None, every_epochs=0.5), 25, Length(8, 4, 2)),
        (config(max_epochs=2, every_steps=None, every_epochs=0.01), 25, Length(8, 4, 1)),
    ],
)
def test_epochs_are_passes_over_the_training_clips_in_global_batches(
    settings: dict[str, Any], clips: int, length: Length
) -> None:
    assert training_length(settings, clips) == length


def test_the_results_state_steps_and_epochs() -> None:
    assert Length(7, 3, 5).facts() == {"steps": 7, "steps_per_epoch": 3, "every_steps": 5, "epochs": 2.333}


def test_a_warm_up_as_long_as_the_training_is_refused() -> None:
    check_schedule(config(), 4)
    with pytest.raises(ConfigError, match=r"optim\.warmup_steps=3: must be below the 3 steps of the training; null"):
        check_schedule(config(), 3)
    check_schedule({"optim": {"warmup_steps": None}}, 1)
