"""What a training step costs and does, logged beside its loss: gradient norm, throughput, GPU memory."""

import time
from typing import Any

import pytorch_lightning as pl
import torch

from kikitori.audio import SAMPLE_RATE


class Monitor(pl.Callback):
    """Logs, each `log_every_n_steps`, the gradient's norm before clipping and the speed since it last did.

    Speed counts the clips of all ranks, which share the work evenly, and leaves validation's time out.
    """

    def __init__(self) -> None:
        self._clips = 0
        self._hours = 0.0
        self._spent_s = 0.0
        self._since = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._clips, self._hours, self._spent_s = 0, 0.0, 0.0
        self._since = time.perf_counter()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        # Lightning has undone the loss's scaling by now, and clips after this.
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            pl_module.log("train/grad_norm", torch.nn.utils.get_total_norm(gradients))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        decoded = trainer.datamodule.stores["train"].decoded
        clips = [clip for clip, weight in zip(batch["clips"], batch["weights"], strict=True) if weight]
        self._clips += len(clips)
        self._hours += sum(decoded[clip].samples for clip in clips) / SAMPLE_RATE / 3600
        if trainer.global_step % trainer.log_every_n_steps:
            return
        spent_s = self._spent_s + time.perf_counter() - self._since
        pl_module.log("train/clips_per_s", trainer.world_size * self._clips / spent_s)
        pl_module.log("train/audio_hours_per_s", trainer.world_size * self._hours / spent_s)
        if pl_module.device.type == "cuda":
            pl_module.log("train/gpu_memory_gb", torch.cuda.max_memory_allocated() / 2**30)
        self.on_train_start(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._spent_s += time.perf_counter() - self._since

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.perf_counter()
