"""Learning-rate schedules: a golden table, equality with transformers, and what does not fit a training."""

import math
from typing import Any

import pytest
import torch
from transformers import get_scheduler

from kikitori.optim.schedule import Schedule, check_decay, lr_factor
from kikitori.runtime.errors import ConfigError

# Of 110 steps, 10 of warm-up and for wsd 20 of decay.
STEPS = (0, 5, 10, 35, 60, 85, 90, 100, 105, 110, 111)
GOLDEN = {
    "linear": (0, 0.5, 1, 0.75, 0.5, 0.25, 0.2, 0.1, 0.05, 0, 0),
    "constant": (0, 0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1),
    "cosine": (0, 0.5, 1, 0.853553, 0.5, 0.146447, 0.095492, 0.024472, 0.006156, 0, 0),
    "wsd": (0, 0.5, 1, 1, 1, 1, 1, 0.5, 0.25, 0, 0),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_schedule_is_a_function_of_the_step(name: str) -> None:
    factors = [lr_factor(step, 10, 110, name, decay_steps=20) for step in STEPS]
    assert factors == pytest.approx(GOLDEN[name], abs=1e-6)
    assert lr_factor(0, 0, 110, name, decay_steps=20) == 1


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize(
    ("ours", "theirs", "more"),
    [
        ("linear", "linear", {}),
        ("constant", "constant_with_warmup", {}),
        ("cosine", "cosine", {}),
        ("wsd", "warmup_stable_decay", {"num_decay_steps": 12, "decay_type": "linear"}),
    ],
)
def test_a_schedule_equals_that_of_transformers(ours: Any, theirs: str, more: dict[str, Any], warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = get_scheduler(theirs, optimizer, warmup, 60, scheduler_specific_kwargs=more)
    factors = Schedule(ours, warmup, 12).factors(60)
    for step in range(61):
        assert factors(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9), step
        optimizer.step()
        scheduler.step()


def test_phases_without_a_number_are_a_tenth_and_a_fifth_of_the_steps() -> None:
    assert Schedule("wsd").phases(1000) == (100, 200)
    assert Schedule("wsd").phases(9000) == (500, 1800)
    assert Schedule("wsd", 3, 4).phases(1000) == (3, 4)
    assert Schedule("wsd").phases(1) == (0, 1)
    assert Schedule("cosine", decay_steps=4).phases(1000) == (100, 0)
    assert Schedule("constant").phases(math.inf) == (500, 0)


def test_a_longer_training_has_the_same_stable_phase() -> None:
    """So that wsd may be trained further from before its decay as if it had been meant to be longer."""
    short, long = (Schedule("wsd", 5, 10).factors(steps) for steps in (50, 80))
    assert [short(step) for step in range(41)] == [long(step) for step in range(41)]
    assert short(45) < long(45) == 1


@pytest.mark.parametrize("name", ["linear", "cosine", "wsd"])
def test_a_schedule_that_ends_needs_a_last_step(name: Any) -> None:
    with pytest.raises(ConfigError, match=rf"schedule='{name}' needs a last step, .* or use schedule='constant'"):
        Schedule(name).factors(math.inf)


def test_phases_longer_than_the_training_are_refused() -> None:
    check_decay(Schedule("wsd", 30, 10), 40)
    with pytest.raises(ConfigError, match=r"optim\.decay_steps=10: with 31 steps of warm-up, more than the 40 steps"):
        check_decay(Schedule("wsd", 31, 10), 40)
    with pytest.raises(ConfigError, match=r"optim\.decay_steps=8: with 35 steps"):
        check_decay(Schedule("wsd", 35), 40)
    check_decay(Schedule("linear", 31, 10), 40)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "step"}, r"optim\.schedule=step: must be linear, constant, cosine or wsd"),
        ({"decay_steps": 0}, r"optim\.decay_steps=0: must be a whole number above 0"),
        ({"warmup_steps": -1}, r"optim\.warmup_steps=-1: must be a whole number, not below 0"),
    ],
)
def test_a_wrong_value_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Schedule(**settings)
