import copy
from typing import Any

import pytest
import torch
from torch import nn

from kikitori.model.whisper import Whisper
from kikitori.runtime.errors import ConfigError
from kikitori.training.optimizer import adamw, lr_factor, parameter_groups, reconfigure


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


def test_frozen_parameters_are_in_no_group() -> None:
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    assert [len(group["params"]) for group in parameter_groups(model, 0.1)] == [0, 1]


def test_the_scheduler_moves_the_learning_rate_once_a_step() -> None:
    model = nn.Linear(2, 2)
    optimizer, scheduler = adamw(1.0, 0.0, (0.9, 0.99), 2, "linear")(model, 10)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0, 0.5, 1.0, 7 / 8])


def test_a_changed_setting_applies_after_a_restore() -> None:
    """A run resumed with another learning rate, or more steps, must not keep those of its saved states."""

    def make(lr: float, max_steps: int) -> tuple[Any, Any]:
        settings = {"lr": lr, "weight_decay": 0.1, "betas": (0.9, 0.98), "warmup_steps": 2, "schedule": "linear"}
        return adamw(**settings)(nn.Linear(2, 2), max_steps)  # type: ignore[arg-type]

    def advanced(optimizer: Any, scheduler: Any, steps: int) -> float:
        for _ in range(steps):
            optimizer.step()
            scheduler.step()
        return optimizer.param_groups[0]["lr"]

    before = make(1e-3, 10)
    advanced(*before, 4)
    for lr, max_steps in ((1e-3, 10), (3e-3, 10), (1e-3, 20)):
        optimizer, scheduler = make(lr, max_steps)
        settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        optimizer.load_state_dict(copy.deepcopy(before[0].state_dict()))
        scheduler.load_state_dict(before[1].state_dict())
        reconfigure(optimizer, scheduler, settings)
        never_stopped = make(lr, max_steps)
        assert optimizer.param_groups[0]["lr"] == advanced(*never_stopped, 4)
        assert advanced(optimizer, scheduler, 3) == advanced(*never_stopped, 3)


@pytest.mark.parametrize("betas", [(0.9, 1.0), (-0.1, 0.98), (float("nan"), 0.98)])
def test_betas_are_from_0_to_below_1(betas: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=r"optim\.betas=.*: must be two numbers from 0 to below 1"):
        adamw(betas=betas)
