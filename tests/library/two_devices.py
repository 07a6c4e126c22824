"""A plain script that trains on several devices: python two_devices.py RELEASE FOLDER DEVICES. Writes results.json."""

import json
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

import kikitori
from kikitori.data.collate import collate
from kikitori.runtime.distributed import all_gather


class Seen(pl.Callback):
    """The clips that this process trains on, without those that only fill up a batch."""

    def __init__(self) -> None:
        self.clips: list[str] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.clips += [clip for clip, weight in zip(batch["clips"], batch["weights"], strict=True) if weight > 0]


def main(release: str, folder: Path, devices: int) -> None:
    torch.manual_seed(0)
    whisper = kikitori.build_whisper(32, 1, 1, 2, window_s=1, max_label_tokens=64, freeze="encoder", init_std=0.02)
    whisper.configure_generation(max_new_tokens=12, num_beams=1)
    batches: dict[str, Any] = {"global_batch_size": 4, "num_workers": 0, "limit": {"train": 9}}
    windows: dict[str, Any] = {"window": "bucketed", "window_edges_s": [0.6, 0.8], "window_margin_s": 0.05}
    data = kikitori.CommonVoice(release, processor=whisper.processor, cache_encoder_outputs=True, **batches, **windows)
    module = kikitori.WhisperModule(whisper, kikitori.adamw(lr=1e-3, warmup_steps=0), ema_decay=0.5)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    seen, settings = Seen(), {"accelerator": "cpu", "devices": devices, "default_root_dir": folder, **quiet}
    trainer = pl.Trainer(max_epochs=2, callbacks=[seen], **settings)
    trainer.fit(module, data)
    results: dict[str, Any] = {"steps": trainer.global_step, "world_size": trainer.world_size}
    (results["validated"],) = trainer.validate(module, data, verbose=False)
    (results["tested"],) = trainer.test(module, data, verbose=False)
    predicted: Any = trainer.predict(module, data)
    results["trained_on"] = all_gather(seen.clips)
    results["clips"] = all_gather([clip for batch in predicted for clip, *_ in batch])
    assert module.average
    both = [[value.tolist() for value in weights] for weights in module.average.both()]
    results["averaged"], results["raw"] = (all_gather(sha256(repr(w).encode()).hexdigest()) for w in both)
    results["trained"] = module.model.proj_out.weight.flatten()[:500].tolist()
    # A loader of the user's own, which Lightning shares among the processes.
    other = kikitori.build_whisper(32, 1, 1, 2, window_s=1, max_label_tokens=64, init_std=0.02)
    other.model.load_state_dict(module.model.state_dict())
    own = kikitori.CommonVoice(release, processor=other.processor, limit={"train": 4})
    if trainer.is_global_zero:
        own.setup()
    trainer.strategy.barrier()
    dataset: Any = own.dataset("train")
    loader = torch.utils.data.DataLoader(dataset, batch_size=4 // devices, collate_fn=collate)
    step = pl.Trainer(max_steps=1, **settings)
    again = kikitori.WhisperModule(other, kikitori.adamw(lr=1e-3, warmup_steps=0))
    step.fit(again, loader)
    results["own_loss"] = float(step.callback_metrics["train/loss"])
    results["own_trained"] = again.model.proj_out.weight.flatten()[:500].tolist()
    if trainer.is_global_zero:
        (folder / f"results-{devices}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
