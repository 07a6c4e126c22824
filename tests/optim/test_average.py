"""The moving average of weights: its formula, what a module shows, and what a checkpoint holds."""

from typing import Any

import pytest
import torch
from torch import nn

from kikitori.optim.average import WeightAverage, check_decay, split
from kikitori.runtime.errors import ConfigError


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.frozen = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.last.weight = self.first.weight
        self.frozen.requires_grad_(False)


def checkpoint(module: nn.Module, **more: Any) -> dict[str, Any]:
    return {"state_dict": module.state_dict(), "optimizer_states": [], **more}


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_average_is_that_of_the_formula(decay: float) -> None:
    module = Tied()
    average, expected = WeightAverage(module, decay), module.first.weight.detach().clone()
    for step in range(20):
        with torch.no_grad():
            module.first.weight += torch.randn(3, 3)
        average.update()
        share = min(decay, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * module.first.weight.detach()
    average.show(averaged=True)
    torch.testing.assert_close(module.first.weight.detach(), expected)
    assert module.last.weight is module.first.weight


def test_a_module_shows_either_and_keeps_both() -> None:
    module = Tied()
    average, start = WeightAverage(module, 0.9), module.first.weight.detach().clone()
    with torch.no_grad():
        module.first.weight += 1
    raw, frozen = module.first.weight.detach().clone(), module.frozen.weight.detach().clone()
    for _ in range(2):
        average.show(averaged=True)
        assert torch.equal(module.first.weight, start)
        average.show(averaged=True)
        assert torch.equal(module.first.weight, start)
        average.show(averaged=False)
        assert torch.equal(module.first.weight, raw)
    assert torch.equal(module.frozen.weight, frozen)


@pytest.mark.parametrize("averaged", [False, True])
def test_a_checkpoint_holds_the_average_as_its_weights_and_the_others_for_a_resume(averaged: bool) -> None:
    module = Tied()
    average, start = WeightAverage(module, 0.9), module.first.weight.detach().clone()
    with torch.no_grad():
        module.first.weight += 1
    raw = module.first.weight.detach().clone()
    average.show(averaged)
    saved, only_weights = checkpoint(module), {"state_dict": module.state_dict()}
    average.add_to(saved, module)
    average.add_to(only_weights, module)
    for one in (saved, only_weights):
        assert torch.equal(one["state_dict"]["first.weight"], start)
        assert torch.equal(one["state_dict"]["last.weight"], start)
        assert set(one["state_dict"]) == set(module.state_dict())
    assert "average" not in only_weights
    assert set(saved["average"]["raw_weights"]) == {"first.weight", "first.bias", "last.weight", "last.bias"}
    updates, averages = split(saved)
    assert updates == 0
    assert torch.equal(averages["first.weight"], start)
    assert torch.equal(saved["state_dict"]["first.weight"], raw)
    assert torch.equal(saved["state_dict"]["frozen.weight"], module.frozen.weight)


def test_a_checkpoint_without_an_average_stays_as_it_is() -> None:
    saved = checkpoint(Tied())
    before = dict(saved["state_dict"])
    assert split(saved) == (0, {})
    assert saved["state_dict"] == before


@pytest.mark.parametrize("decay", [0, 1, 1.5, -0.1, "0.9", True])
def test_a_decay_outside_0_and_1_is_refused(decay: Any) -> None:
    with pytest.raises(ConfigError, match=rf"ema\.decay={decay}: must be a number (above 0|from 0 to below 1)"):
        check_decay(decay)
    check_decay(None)
    check_decay(0.999)
