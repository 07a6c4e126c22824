"""AdamW with its learning-rate schedule, counted in optimizer steps."""

import logging
from collections.abc import Callable
from functools import partial
from math import isinf
from typing import Any, Literal

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from kikitori.runtime.errors import ConfigError, check_above_zero, check_not_negative

log = logging.getLogger(__name__)

# Optimizer steps of warm-up, at most, where none are given.
LONGEST_WARMUP = 500
# Builds the optimizer of a model and its scheduler for a number of steps (inf: without an end).
OptimizerFactory = Callable[[nn.Module, float], tuple[Optimizer, Any]]


def adamw(
    lr: float = 1e-5,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.98),
    warmup_steps: int | None = None,
    schedule: Literal["linear", "constant"] = "linear",
) -> OptimizerFactory:
    """Returns what WhisperModule needs to build AdamW for its model, with a scheduler that advances once per step.

    lr: the peak, reached after `warmup_steps` of linear increase; None for a tenth of the steps, at most 500. schedule:
    afterwards linear to 0 at the last step, or constant. weight_decay: of matrices; biases and norms do not decay.
    """
    if schedule not in ("linear", "constant"):
        raise ConfigError(f"optim.schedule={schedule}: must be linear or constant")
    check_above_zero("optim", {"lr": lr})
    check_not_negative("optim", {"weight_decay": weight_decay})
    if not all(0 <= beta < 1 for beta in betas):
        raise ConfigError(f"optim.betas={betas}: must be two numbers from 0 to below 1")
    if warmup_steps is not None:
        check_not_negative("optim", {"warmup_steps": warmup_steps}, whole=True)
    return partial(_adamw, lr=lr, weight_decay=weight_decay, betas=betas, warmup_steps=warmup_steps, schedule=schedule)


def check_factory(make_optimizer: Any) -> None:
    """Raises TypeError for an optimizer, or its class, in place of a function that builds it."""
    if make_optimizer is adamw:
        got = "the function adamw itself"
    elif isinstance(make_optimizer, type):
        got = f"the class {make_optimizer.__name__}"
    elif make_optimizer is None or callable(make_optimizer):
        return
    else:
        got = type(make_optimizer).__name__
    raise TypeError(
        "make_optimizer must be a function (model, steps) -> (optimizer, scheduler), because the steps are known only "
        f"when training starts; got {got}; pass kikitori.adamw(lr=1e-5)"
    )


def _adamw(
    model: nn.Module,
    max_steps: float,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    warmup_steps: int | None,
    schedule: str,
) -> tuple[AdamW, LambdaLR]:
    if schedule == "linear" and isinf(max_steps):
        raise ConfigError(
            "schedule='linear' needs a last step, but the Trainer has no max_steps or max_epochs; pass one, or use "
            "adamw(schedule='constant')"
        )
    if warmup_steps is None:
        warmup_steps = LONGEST_WARMUP if isinf(max_steps) else min(LONGEST_WARMUP, int(max_steps) // 10)
    elif warmup_steps >= max_steps:
        log.warning(
            "warmup_steps=%d is not below the %d steps of the training: the learning rate never reaches its peak; "
            "None takes a tenth of the steps",
            *(warmup_steps, max_steps),
        )
    warmup: int = warmup_steps
    optimizer = AdamW(parameter_groups(model, weight_decay), lr=lr, betas=(betas[0], betas[1]), fused=True)
    # The kernel could undo the loss scaling itself, but then gradients could not be clipped before it.
    optimizer._step_supports_amp_scaling = False
    scheduler = LambdaLR(optimizer, lambda step: lr_factor(step, warmup, max_steps, schedule))
    return optimizer, scheduler


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of trainable parameters: matrices decay; biases, norms and other vectors do not."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]


def lr_factor(step: int, warmup_steps: int, max_steps: float, schedule: str) -> float:
    """The share of the peak learning rate at a step: linear up, then linear down to 0 at max_steps, or constant."""
    if step < warmup_steps:
        return step / warmup_steps
    if schedule == "constant":
        return 1.0
    return max(0.0, (max_steps - step) / max(1, max_steps - warmup_steps))


def reconfigure(optimizer: Optimizer, scheduler: Any, groups: list[dict[str, Any]]) -> None:
    """Applies the configured settings to a restored optimizer; a no-op if they are those it was saved with.

    A scheduler other than LambdaLR keeps the learning rates that it was saved with.
    """
    if not isinstance(scheduler, LambdaLR):
        return
    scheduler.base_lrs = [group["initial_lr"] for group in groups]
    for group, settings, base, factor in zip(
        optimizer.param_groups, groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
    ):
        group |= {**settings, "lr": base * factor(scheduler.last_epoch)}
