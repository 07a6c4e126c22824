"""AdaLoRA in training: the penalty that keeps matrices orthogonal, and which ranks are pruned when."""

import logging
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kikitori.adapters.layers import NAME
from kikitori.adapters.merging import A, B
from kikitori.adapters.settings import AdaLora
from kikitori.runtime.errors import ConfigError

log = logging.getLogger(__name__)

# What peft's allocator remembers between two steps: moving averages of each weight's importance.
AVERAGES = ("exp_avg_ipt", "exp_avg_unc")


class AdaptiveRanks(pl.Callback):
    """Prunes the ranks of a model's AdaLoRA after each step, by peft's RankAllocator.

    Its state is part of checkpoints, so a resumed run prunes as an uninterrupted one.
    """

    def __init__(self, model: nn.Module, adapter: AdaLora) -> None:
        self.model, self.adapter = model, adapter
        self._restored: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        averages = {key: dict(getattr(self.allocator, key)) for key in AVERAGES}
        return {**averages, "pattern": self.pattern, "is_final": self.is_final}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Plans the pruning, now that the training's length is known. Raises ConfigError if it is too short."""
        from peft.tuners.adalora.layer import RankAllocator

        model: Any = self.model
        config = model.peft_config[NAME]
        steps = pl_module.total_steps()
        if not 2 <= steps < 2**62:
            raise ConfigError(
                f"adapter=adalora prunes ranks during the training; it needs 2 steps at least, not {steps}"
            )
        config.total_step = int(steps)
        config.tfinal = min(round(self.adapter.final_share * steps), config.total_step - 2)
        config.tinit = min(round(self.adapter.warmup_share * steps), config.total_step - config.tfinal - 1)
        self.allocator = RankAllocator(model, config, NAME)
        # Which entries of each E are left, by name; None before the first pruning.
        self.pattern: dict[str, list[bool]] | None = self._restored.get("pattern")
        self.is_final = bool(self._restored.get("is_final"))
        for key in AVERAGES:
            restored = {n: value.to(pl_module.device) for n, value in self._restored.get(key, {}).items()}
            setattr(self.allocator, key, restored)
        self.allocator.ipt = {name: torch.zeros_like(value) for name, value in self.allocator.exp_avg_ipt.items()}
        self._taken = False
        self._hook = trainer.optimizers[0].register_step_post_hook(self._take)

    def _take(self, *arguments: Any) -> None:
        # torch calls it for the steps that GradScaler does not skip; gradients of others are not finite.
        self._taken = True

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Adds the gradient of the penalty, once per step and before gradients are clipped."""
        if not self.adapter.orthogonality:
            return
        matrices = [p for n, p in self.model.named_parameters() if n.endswith((f".{A}.{NAME}", f".{B}.{NAME}"))]
        with torch.autocast(pl_module.device.type, enabled=False):
            penalty = self.adapter.orthogonality * orthogonality_penalty(matrices)
            gradients = torch.autograd.grad(penalty, matrices)
        for matrix, gradient in zip(matrices, gradients, strict=True):
            matrix.grad = gradient if matrix.grad is None else matrix.grad.add_(gradient)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        config, step = self.allocator.peft_config, trainer.global_step
        if self.is_final:
            self.allocator.mask_using_rank_pattern(self.model, self.pattern)
        elif step >= config.total_step - config.tfinal and self.allocator.exp_avg_ipt:
            self.pattern = self.allocator.update_and_allocate(self.model, step, force_mask=True)[1]
            self.allocator.reset_ipt()
            self.is_final = True
        elif self._taken:
            self.pattern = self.allocator.update_and_allocate(self.model, step)[1] or self.pattern
        self._taken = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._hook.remove()
        ranks = sorted(map(sum, (self.pattern or {}).values()))
        if ranks:
            mean = sum(ranks) / len(ranks)
            log.info("AdaLoRA: ranks from %d to %d are left, %.3g in the mean", ranks[0], ranks[-1], mean)


def orthogonality_penalty(matrices: list[nn.Parameter]) -> Tensor:
    """The mean distance of each matrix's Gram matrix from the identity, over the shorter side of each."""
    distances = []
    for matrix in matrices:
        rows = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        gram = rows @ rows.T
        distances.append(torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device)))
    return torch.stack(distances).mean()
