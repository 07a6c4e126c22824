import pytest
import torch
from torch import nn

from kikitori.optim import build, lr_factor, parameter_groups
from kikitori.whisper import Whisper


@pytest.mark.parametrize(
    ("step", "schedule", "expected"),
    [
        (0, "linear", 0.0),
        (5, "linear", 0.5),
        (10, "linear", 1.0),
        (60, "linear", 0.5),
        (110, "linear", 0.0),
        (111, "linear", 0.0),
        (10, "constant", 1.0),
        (110, "constant", 1.0),
    ],
)
def test_the_schedule_warms_up_and_decays_by_step(step: int, schedule: str, expected: float) -> None:
    assert lr_factor(step, warmup_steps=10, max_steps=110, schedule=schedule) == pytest.approx(expected)


def test_no_warm_up_starts_at_the_peak() -> None:
    assert lr_factor(0, warmup_steps=0, max_steps=10, schedule="linear") == 1.0


def test_norms_and_biases_do_not_decay(micro: Whisper) -> None:
    decayed, spared = parameter_groups(micro.model, 0.1)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in micro.model.named_parameters()}
    assert all("norm" not in names[id(p)] and not names[id(p)].endswith("bias") for p in decayed["params"])
    assert all("norm" in names[id(p)] or names[id(p)].endswith("bias") for p in spared["params"])
    trainable = [p for p in micro.model.parameters() if p.requires_grad]
    assert len(decayed["params"]) + len(spared["params"]) == len(trainable)


def test_frozen_parameters_are_left_to_nobody() -> None:
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    assert [len(group["params"]) for group in parameter_groups(model, 0.1)] == [0, 1]


def test_the_scheduler_moves_the_learning_rate_once_a_step() -> None:
    model = nn.Linear(2, 2)
    optimizer, scheduler = build(model, 10, 1.0, 0.0, (0.9, 0.99), 2, "linear")
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0, 0.5, 1.0, 7 / 8])
