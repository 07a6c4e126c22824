"""Trains some steps in a process of its own: python train_script.py SETTINGS, as JSON. Writes FOLDER/RANK.json, .pt.

Several of these train together, as torchrun would start them; on one card they are two nodes with one device each.
"""

import json
import os
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
        self.seconds = time.perf_counter() - self.start


def main(settings: dict[str, Any]) -> None:
    folder, world_size = Path(settings["folder"]), int(os.environ.get("WORLD_SIZE", 1))
    backend = "nccl" if settings["trainer"].get("devices", 1) > 1 else "gloo"
    strategy: Any = DDPStrategy(process_group_backend=backend) if world_size > 1 else "auto"
    pl.seed_everything(0, verbose=False)
    whisper = kikitori.build_whisper(**settings["model"], init_std=0.02, freeze=settings.get("freeze", "none"))
    whisper.configure_generation(max_new_tokens=8, num_beams=1)
    clips: dict[str, Any] = {"processor": whisper.processor, "num_workers": 0, "global_batch_size": settings["batch"]}
    data = kikitori.CommonVoice(settings["release"], **clips, cache_encoder_outputs=settings.get("cached", False))
    module = kikitori.WhisperModule(whisper, kikitori.adamw(lr=1e-3, warmup_steps=0))
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    clock = Clock()
    trainer = pl.Trainer(
        accelerator="gpu",
        strategy=strategy,
        callbacks=[clock],
        default_root_dir=folder,
        enable_model_summary=False,
        # All steps in one epoch, without validation.
        check_val_every_n_epoch=None,
        val_check_interval=10**9,
        **{"devices": 1, **quiet, **settings["trainer"]},
    )
    trainer.fit(module, data)
    (scores,) = trainer.validate(module, data, verbose=False)
    rank = trainer.global_rank
    torch.save(weights(module), folder / f"{rank}.pt")
    steps = {"seconds_per_step": clock.seconds / (trainer.max_steps - 3), "scores": scores}
    (folder / f"{rank}.json").write_text(json.dumps(steps))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
