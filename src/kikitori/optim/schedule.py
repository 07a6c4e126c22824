"""Learning-rate schedules: pure functions of the number of optimizer steps done."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, isinf, pi
from typing import Literal, get_args

from kikitori.runtime.errors import ConfigError, check_above_zero, check_not_negative

log = logging.getLogger(__name__)

ScheduleName = Literal["linear", "constant", "cosine", "wsd"]
# Optimizer steps of warm-up, at most, where none are given.
LONGEST_WARMUP = 500


@dataclass(frozen=True)
class Schedule:
    """The learning rate over a training, as shares of its peak.

    name: what follows the warm-up. linear or cosine: down to 0 at the last step. constant. wsd: constant, then linearly
    down to 0 in the last `decay_steps` steps. warmup_steps: of linear increase from 0; None for a tenth of the steps,
    at most 500. decay_steps: of wsd; None for a fifth of the steps.
    Raises ConfigError for a value that is none of these.
    """

    name: ScheduleName = "linear"
    warmup_steps: int | None = None
    decay_steps: int | None = None

    def __post_init__(self) -> None:
        *others, last = get_args(ScheduleName)
        if self.name not in (*others, last):
            raise ConfigError(f"optim.schedule={self.name}: must be {', '.join(others)} or {last}")
        if self.warmup_steps is not None:
            check_not_negative("optim", {"warmup_steps": self.warmup_steps}, whole=True)
        if self.decay_steps is not None:
            check_above_zero("optim", {"decay_steps": self.decay_steps}, whole=True)

    def phases(self, max_steps: float) -> tuple[int, int]:
        """Steps of warm-up, and of wsd's decay, in a training of `max_steps`; inf: one without an end."""
        if isinf(max_steps):
            return LONGEST_WARMUP if self.warmup_steps is None else self.warmup_steps, 0
        warmup = min(LONGEST_WARMUP, int(max_steps) // 10) if self.warmup_steps is None else self.warmup_steps
        decay = max(1, int(max_steps) // 5) if self.decay_steps is None else self.decay_steps
        return warmup, decay if self.name == "wsd" else 0

    def factors(self, max_steps: float) -> Callable[[int], float]:
        """Returns the function from steps done to the share of the peak learning rate."""
        if self.name != "constant" and isinf(max_steps):
            raise ConfigError(
                f"schedule='{self.name}' needs a last step, but the Trainer has no max_steps or max_epochs; pass one, "
                "or use schedule='constant'"
            )
        warmup, decay = self.phases(max_steps)
        if warmup and warmup >= max_steps:
            log.warning(
                "warmup_steps=%d is not below the %d steps of the training: the learning rate never reaches its peak; "
                "None takes a tenth of the steps",
                *(warmup, max_steps),
            )
        return lambda step: lr_factor(step, warmup, max_steps, self.name, decay)


def lr_factor(step: int, warmup_steps: int, max_steps: float, schedule: str, decay_steps: int = 0) -> float:
    """The share of the peak learning rate after `step` steps; 0 from `max_steps` on, unless it is constant."""
    if step < warmup_steps:
        return step / warmup_steps
    left = max(0.0, max_steps - step)
    if schedule == "constant":
        return 1.0
    if schedule == "wsd":
        return min(1.0, left / decay_steps)
    share = left / max(1, max_steps - warmup_steps)
    return share if schedule == "linear" else (1 - cos(pi * share)) / 2


def check_decay(schedule: Schedule, max_steps: float) -> None:
    """Raises ConfigError for a decay of wsd that begins before the warm-up has ended."""
    warmup, decay = schedule.phases(max_steps)
    if decay and warmup + decay > max_steps:
        raise ConfigError(
            f"optim.decay_steps={decay}: with {warmup} steps of warm-up, more than the {max_steps:g} steps of the "
            "training; null takes a fifth of them"
        )
