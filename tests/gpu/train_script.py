"""Trains some steps in a process of its own: python train_script.py SETTINGS, as JSON.

In the settings' folder it writes RANK.json and, for each time it trains, the weights: RANK-0.pt, RANK-1.pt, ...
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from gpu_models import weights
from pytorch_lightning.strategies import DDPStrategy

import kikitori


class Clock(pl.Callback):
    """The seconds of all steps after the third."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 3:
            torch.cuda.synchronize()
            self.start = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.cuda.synchronize()
        self.seconds_per_step = (time.perf_counter() - self.start) / (trainer.global_step - 3)


def main(settings: dict[str, Any]) -> None:
    for time_number in range(settings.get("times", 1)):
        trainer, module, seconds_per_step = train(settings)
        rank = trainer.global_rank
        torch.save(weights(module), Path(settings["folder"], f"{rank}-{time_number}.pt"))
    (scores,) = trainer.validate(module, trainer.datamodule, verbose=False)  # type: ignore[attr-defined]
    measured = {"seconds_per_step": seconds_per_step, "scores": scores}
    Path(settings["folder"], f"{rank}.json").write_text(json.dumps(measured))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def train(settings: dict[str, Any]) -> tuple[pl.Trainer, kikitori.WhisperModule, float]:
    pl.seed_everything(0, verbose=False)
    whisper = kikitori.build_whisper(**settings["model"], init_std=0.02, freeze=settings.get("freeze", "none"))
    whisper.configure_generation(max_new_tokens=8, num_beams=1)
    clips: dict[str, Any] = {"processor": whisper.processor, "num_workers": 0, "global_batch_size": settings["batch"]}
    data = kikitori.CommonVoice(settings["release"], **clips, cache_encoder_outputs=settings.get("cached", False))
    module = kikitori.WhisperModule(whisper, kikitori.adamw(lr=1e-3, warmup_steps=0))
    clock, arguments = Clock(), settings["trainer"]
    if settings.get("world_size", 1) > 1:
        # NCCL refuses two processes on one card.
        backend = "nccl" if arguments.get("devices", 1) > 1 else "gloo"
        arguments = {**arguments, "strategy": DDPStrategy(process_group_backend=backend)}
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    # All steps in one epoch, without validation.
    epoch: dict[str, Any] = {"check_val_every_n_epoch": None, "val_check_interval": 10**9}
    own = {"devices": 1, "accelerator": "gpu", "default_root_dir": settings["folder"], **arguments}
    trainer = pl.Trainer(callbacks=[clock], enable_model_summary=False, **quiet, **epoch, **own)
    trainer.fit(module, data)
    return trainer, module, clock.seconds_per_step


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
