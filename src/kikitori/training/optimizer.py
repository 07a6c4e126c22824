"""AdamW and its schedule, counted in optimizer steps."""

from typing import Any, Literal

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of trainable parameters: matrices decay; biases, norms and other vectors do not."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]


def lr_factor(step: int, warmup_steps: int, max_steps: int, schedule: str) -> float:
    """The share of the peak learning rate at a step: linear up, then linear down to 0 at max_steps, or constant."""
    if step < warmup_steps:
        return step / warmup_steps
    if schedule == "constant":
        return 1.0
    return max(0.0, (max_steps - step) / max(1, max_steps - warmup_steps))


def adamw(
    model: nn.Module,
    max_steps: int,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    warmup_steps: int,
    schedule: Literal["linear", "constant"],
) -> tuple[AdamW, LambdaLR]:
    """AdamW, and a scheduler that steps once an optimizer step; `schedule` is what follows the warm-up."""
    optimizer = AdamW(parameter_groups(model, weight_decay), lr=lr, betas=(betas[0], betas[1]), fused=True)
    # The kernel could undo the loss's scaling itself, but then nobody could clip the gradients before it.
    optimizer._step_supports_amp_scaling = False
    scheduler = LambdaLR(optimizer, lambda step: lr_factor(step, warmup_steps, max_steps, schedule))
    return optimizer, scheduler


def reconfigure(optimizer: Optimizer, scheduler: Any, groups: list[dict[str, Any]]) -> None:
    """Let settings hold from here on: nothing changes where they are those that the states were saved with."""
    scheduler.base_lrs = [group["initial_lr"] for group in groups]
    for group, settings, base, factor in zip(
        optimizer.param_groups, groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
    ):
        group |= {**settings, "lr": base * factor(scheduler.last_epoch)}
