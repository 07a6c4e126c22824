"""A small Whisper for tests on a GPU, what one step of it computes, and its random clips."""

import copy
import gc
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from training_runs import OPTIM, trainer, training

from kikitori.model.loading import build_whisper
from kikitori.model.whisper import Whisper
from kikitori.training.lightning_module import WhisperModule


def small_whisper(**config: Any) -> Whisper:
    """Heads of 64 like every Whisper's, which decide the attention kernel, and a window of 1 s; the same each time."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_model": 128, "encoder_layers": 2, "decoder_layers": 2, "attention_heads": 2}
    whisper = build_whisper(**sizes, window_s=1, max_label_tokens=64, init_std=0.02, **config)
    whisper.configure_generation(max_new_tokens=24, num_beams=1)
    return whisper


class Gradients(pl.Callback):
    """Keeps the last step's gradients as one vector, before they are clipped."""

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.vector = torch.cat([p.grad.flatten().cpu() for p in pl_module.model.parameters() if p.grad is not None])


def first_step(
    whisper: Whisper, folder: Path, sizes: dict[int, int] | None = None, **settings: Any
) -> tuple[float, Tensor]:
    """The loss and gradients of one step over four clips; the model itself is not changed."""
    gradients = Gradients()
    run = trainer(folder, max_steps=1, callbacks=[gradients], **settings)
    run.fit(WhisperModule(copy.deepcopy(whisper), OPTIM, micro_batch_sizes=sizes), training(whisper, 4, 1))
    return float(run.callback_metrics["train/loss"]), gradients.vector


def distance(one: Tensor, other: Tensor) -> float:
    """The relative difference of two vectors: its norm over that of the second."""
    return float((one.double() - other.double()).norm() / other.double().norm())


def weights(module: WhisperModule | Whisper) -> Tensor:
    """All weights as one vector on the CPU."""
    return torch.cat([p.detach().flatten().cpu() for p in module.model.parameters()])


def free_memory() -> None:
    """Returns the memory of finished work to the GPU. A Trainer and its module refer to each other."""
    gc.collect()
    torch.cuda.empty_cache()
