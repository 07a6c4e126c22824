"""An exponential moving average of the trained weights (EMA)."""

from typing import Any

import torch
from torch import Tensor, nn

from kikitori.runtime.errors import check_above_zero, check_below_one

# Where a checkpoint keeps the weights that go on training; its `state_dict` has the averaged ones.
AVERAGE = "average"


def check_decay(decay: float | None) -> None:
    """Raises ConfigError for a decay that is not between 0 and 1."""
    if decay is not None:
        check_above_zero("ema", {"decay": decay})
        check_below_one("ema", {"decay": decay})


class WeightAverage:
    """Keeps an average beside the trained weights of a module, and shows one of the two in the module.

    The update after the n-th step, from 0 on, is average = d * average + (1 - d) * weights, with
    d = min(decay, (1 + n) / (10 + n)): otherwise a short training would mostly average its start (the rule of
    TensorFlow's ExponentialMovingAverage). Memory: a further copy of the trained weights, in fp32.
    """

    def __init__(self, module: nn.Module, decay: float, restored: tuple[int, dict[str, Tensor]] = (0, {})) -> None:
        """Starts from the module's weights, or from the updates done and the averages that a checkpoint has."""
        self.decay = decay
        self.updates, averages = restored
        self._trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        # Of each trained weight the value that the module does not show.
        self._hidden = [torch.empty_like(p).copy_(averages.get(name, p.detach())) for name, p in self._trained.items()]
        self._shows_average = False

    def update(self) -> None:
        """Moves the average towards the weights of the module, after a step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._hidden, [p.detach() for p in self._trained.values()], 1 - decay)
        self.updates += 1

    def show(self, averaged: bool) -> None:
        """Gives the module the averaged weights, or those that go on training."""
        if averaged != self._shows_average:
            for i, parameter in enumerate(self._trained.values()):
                parameter.data, self._hidden[i] = self._hidden[i], parameter.data
            self._shows_average = averaged

    def both(self) -> tuple[list[Tensor], list[Tensor]]:
        """The averaged weights, and those that go on training."""
        shown = [p.detach() for p in self._trained.values()]
        return (shown, self._hidden) if self._shows_average else (self._hidden, shown)

    def add_to(self, checkpoint: dict[str, Any], module: nn.Module) -> None:
        """Makes the averages the weights of a checkpoint; with an optimizer, it keeps the others for a resume."""
        places = {id(p): i for i, p in enumerate(self._trained.values())}
        names = {n: places[id(p)] for n, p in module.named_parameters(remove_duplicate=False) if id(p) in places}
        averaged, raw = ({name: weights[i] for name, i in names.items()} for weights in self.both())
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **averaged}
        if "optimizer_states" in checkpoint:
            checkpoint[AVERAGE] = {"updates": self.updates, "raw_weights": raw}


def split(checkpoint: dict[str, Any]) -> tuple[int, dict[str, Tensor]]:
    """Makes the weights that go on training those of a checkpoint.

    Returns the updates and averages that it had; none of a checkpoint without an average.
    """
    if AVERAGE not in checkpoint:
        return 0, {}
    averages, raw = checkpoint["state_dict"], checkpoint[AVERAGE]["raw_weights"]
    checkpoint["state_dict"] = {**averages, **raw}
    return checkpoint[AVERAGE]["updates"], {name: averages[name] for name in raw}
