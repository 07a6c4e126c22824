"""Several optimizers as one, for models whose parameters need different ones."""

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch.optim import Optimizer


class ComposedOptimizer(Optimizer):
    """Several optimizers as one: a step is a step of each, and the parameter groups are those of all, in their order.

    Schedulers, gradient scaling and Lightning treat it as a single optimizer. Each part saves and restores its own
    state, because the rules for that differ: torch would turn the 8-bit state of bitsandbytes into floats.
    """

    def __init__(self, *parts: Optimizer) -> None:
        self.parts = parts
        super().__init__(self._groups(), {"lr": parts[0].defaults["lr"]})

    def _groups(self) -> list[dict[str, Any]]:
        # The same dicts as in the parts, so that a new learning rate reaches these.
        return list(chain.from_iterable(part.param_groups for part in self.parts))

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates all parameters. closure: computes the gradients first, and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups[:] = self._groups()
