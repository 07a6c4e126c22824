"""fp16 on a GPU: a step whose gradients overflow is skipped, and training continues at half the scale."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from gpu_models import small_whisper, weights
from training_runs import OPTIM, trainer, training

from kikitori.optim.optimizers import adamw
from kikitori.training.lightning_module import WhisperModule


class Overflow(pl.Callback):
    """Makes the second step overflow, and keeps what each step does."""

    def __init__(self) -> None:
        self.moved: list[bool] = []
        self.scales: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self.hook = pl_module.model.proj_out.register_forward_hook(lambda m, i, output: output * torch.inf)
        elif batch_idx == 2:
            self.hook.remove()
        self.before = weights(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.moved.append(not torch.equal(self.before, weights(pl_module)))
        self.scales.append(trainer.precision_plugin.scaler.get_scale())


def test_an_overflow_skips_the_step_and_halves_the_scale(tmp_path: Path, record_property: Any) -> None:
    whisper, seen = small_whisper(), Overflow()
    run = trainer(tmp_path, max_steps=3, precision="16-mixed", callbacks=[seen], accelerator="gpu", devices=1)
    run.fit(WhisperModule(whisper, adamw(lr=1e-3, weight_decay=0.1, warmup_steps=0)), training(whisper, 4, 3))
    scheduler: Any = run.lr_scheduler_configs[0].scheduler
    record_property("scale after each step", ", ".join(f"{scale:g}" for scale in seen.scales))
    record_property("steps counted", run.global_step)
    record_property("steps of the schedule", scheduler.last_epoch)
    assert seen.moved == [True, False, True]
    first = seen.scales[0]
    assert seen.scales == [first, first / 2, first / 2]
    # As in Lightning: a skipped step counts and moves the schedule, so that training ends when it was planned to.
    assert (run.global_step, scheduler.last_epoch) == (3, 3)


def test_the_scale_is_in_the_checkpoint(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"precision": "16-mixed", "accelerator": "gpu", "devices": 1}
    whisper, seen = small_whisper(), Overflow()
    run = trainer(tmp_path, max_steps=2, callbacks=[seen], **settings)
    run.fit(WhisperModule(whisper, OPTIM), training(whisper, 4, 2))
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = trainer(tmp_path, max_steps=3, **settings)
    again.fit(WhisperModule(small_whisper(), OPTIM), training(whisper, 4, 3), ckpt_path=tmp_path / "a.ckpt")
    scaler: Any = again.precision_plugin
    assert scaler.scaler.get_scale() == pytest.approx(seen.scales[-1])
