"""Optimizers with their learning-rate schedules: AdamW, AdamW with its state in 8 bits, and Muon."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import nn
from torch.nn import Parameter
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from kikitori.optim.composed import ComposedOptimizer
from kikitori.optim.eight_bit import import_bitsandbytes, make_adamw8bit
from kikitori.optim.schedule import Schedule, ScheduleName
from kikitori.runtime.errors import ConfigError, check_above_zero, check_below_one, check_not_negative

# Builds the optimizer of a model and its scheduler for a number of steps (inf: without an end).
OptimizerFactory = Callable[[nn.Module, float], tuple[Optimizer, Any]]
Betas = tuple[float, float]


def adamw(
    lr: float = 1e-5,
    weight_decay: float = 0.01,
    betas: Betas = (0.9, 0.98),
    warmup_steps: int | None = None,
    schedule: ScheduleName = "linear",
    decay_steps: int | None = None,
) -> OptimizerFactory:
    """Returns what WhisperModule needs to build AdamW for its model, with a scheduler that advances once per step.

    lr: the peak, reached after `warmup_steps` of linear increase; None for a tenth of the steps, at most 500. schedule:
    afterwards linear or cosine to 0 at the last step, constant, or wsd: constant, then linear to 0 in the last
    `decay_steps`; None for a fifth of the steps. weight_decay: of matrices; biases and norms do not decay.
    """
    _check(lr, weight_decay, betas)
    make = partial(_adamw, lr=lr, weight_decay=weight_decay, betas=betas)
    return partial(_with_schedule, make=make, schedule=Schedule(schedule, warmup_steps, decay_steps))


def adamw8bit(
    lr: float = 1e-5,
    weight_decay: float = 0.01,
    betas: Betas = (0.9, 0.98),
    warmup_steps: int | None = None,
    schedule: ScheduleName = "linear",
    decay_steps: int | None = None,
) -> OptimizerFactory:
    """As `adamw`, with the two moments of matrices and convolutions in 8 bits: 2 bytes per weight instead of 8.

    Embeddings, biases, norms and what has fewer than 4,096 numbers keep theirs in 32 bits, as in transformers' Trainer.
    Raises ConfigError without bitsandbytes. Source: Dettmers et al. 2022, "8-bit Optimizers via Block-wise
    Quantization".
    """
    _check(lr, weight_decay, betas)
    import_bitsandbytes()
    make = partial(_adamw8bit, lr=lr, weight_decay=weight_decay, betas=betas)
    return partial(_with_schedule, make=make, schedule=Schedule(schedule, warmup_steps, decay_steps))


def muon(
    lr: float = 1e-5,
    weight_decay: float = 0.01,
    momentum: float = 0.95,
    betas: Betas = (0.9, 0.98),
    warmup_steps: int | None = None,
    schedule: ScheduleName = "linear",
    decay_steps: int | None = None,
) -> OptimizerFactory:
    """As `adamw`, with Muon for the matrices of linear layers: their momentum is orthogonalised before it is applied.

    Embeddings, convolutions, biases and norms take AdamW, to which `betas` belong; momentum: of Muon. The learning rate
    and weight decay are those of AdamW for both: Muon's update is scaled by 0.2 sqrt(max(rows, columns)), by which its
    root mean square is about AdamW's (torch's adjust_lr_fn="match_rms_adamw"; Liu et al. 2025, "Muon is Scalable for
    LLM Training", section 2.2). One moment instead of two: 4 bytes per weight of these matrices instead of 8.
    """
    _check(lr, weight_decay, betas)
    check_below_one("optim", {"momentum": momentum})
    make = partial(_muon, lr=lr, weight_decay=weight_decay, momentum=momentum, betas=betas)
    return partial(_with_schedule, make=make, schedule=Schedule(schedule, warmup_steps, decay_steps))


def check_factory(make_optimizer: Any) -> None:
    """Raises TypeError for an optimizer, or its class, in place of a function that builds it."""
    if make_optimizer in (adamw, adamw8bit, muon):
        got = f"the function {make_optimizer.__name__} itself"
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


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of trainable parameters: matrices decay; biases, norms and other vectors do not."""
    return _groups(_trainable(model), weight_decay)


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


def _check(lr: float, weight_decay: float, betas: Betas) -> None:
    check_above_zero("optim", {"lr": lr})
    check_not_negative("optim", {"weight_decay": weight_decay})
    if not all(0 <= beta < 1 for beta in betas):
        raise ConfigError(f"optim.betas={betas}: must be two numbers from 0 to below 1")


def _with_schedule(
    model: nn.Module, max_steps: float, make: Callable[[nn.Module], Optimizer], schedule: Schedule
) -> tuple[Optimizer, LambdaLR]:
    factors = schedule.factors(max_steps)
    optimizer = make(model)
    return optimizer, LambdaLR(optimizer, factors)


def _adamw(model: nn.Module, lr: float, weight_decay: float, betas: Betas) -> AdamW:
    return _fused_adamw(parameter_groups(model, weight_decay), lr, betas)


def _adamw8bit(model: nn.Module, lr: float, weight_decay: float, betas: Betas) -> ComposedOptimizer:
    embeddings = _embeddings(model)
    in_8_bits = [p for p in _trainable(model) if p.ndim >= 2 and id(p) not in embeddings]
    group = {"params": in_8_bits, "weight_decay": weight_decay}
    eight_bit = make_adamw8bit([group], lr=lr, betas=(betas[0], betas[1]))
    others = _groups(_others(model, in_8_bits), weight_decay)
    return ComposedOptimizer(eight_bit, _fused_adamw(others, lr, betas))


def _muon(model: nn.Module, lr: float, weight_decay: float, momentum: float, betas: Betas) -> ComposedOptimizer:
    embeddings = _embeddings(model)
    # A single row or column has no directions to make equal.
    matrices = [p for p in _trainable(model) if p.ndim == 2 and min(p.shape) > 1 and id(p) not in embeddings]
    group = {"params": matrices, "weight_decay": weight_decay}
    of_matrices = Muon([group], lr=lr, momentum=momentum, adjust_lr_fn="match_rms_adamw")
    others = _groups(_others(model, matrices), weight_decay)
    return ComposedOptimizer(of_matrices, _fused_adamw(others, lr, betas))


def _fused_adamw(groups: list[dict[str, Any]], lr: float, betas: Betas) -> AdamW:
    optimizer = AdamW(groups, lr=lr, betas=(betas[0], betas[1]), fused=True)
    # The kernel could undo the loss scaling itself, but then gradients could not be clipped before it.
    optimizer._step_supports_amp_scaling = False
    return optimizer


def _groups(parameters: Iterable[Parameter], weight_decay: float) -> list[dict[str, Any]]:
    parameters = list(parameters)
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _trainable(model: nn.Module) -> list[Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _others(model: nn.Module, parameters: Iterable[Parameter]) -> list[Parameter]:
    known = set(map(id, parameters))
    return [p for p in _trainable(model) if id(p) not in known]


def _embeddings(model: nn.Module) -> set[int]:
    """The ids of the tables of tokens and positions; the first is also Whisper's last layer."""
    return {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
