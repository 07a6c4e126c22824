"""The metrics that a training step logs in addition to its loss."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from kikitori.data.collate import collate
from kikitori.model.whisper import Whisper
from kikitori.optim.optimizers import adamw
from kikitori.training import callbacks
from kikitori.training.callbacks import ThroughputMonitor
from kikitori.training.history import MetricsFile
from kikitori.training.lightning_module import WhisperModule

OPTIM = adamw(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.98), warmup_steps=1, schedule="linear")
TEXTS = ["犬", "赤い犬", "猫", "白い猫と犬"]
CLIP_S = 1.8


class Data(pl.LightningDataModule):
    """Four clips of equal length, one per batch."""

    def __init__(self, whisper: Whisper) -> None:
        super().__init__()
        self.whisper = whisper

    def train_dataloader(self) -> Any:
        processor = self.whisper.processor
        features = torch.randn(80, processor.frames, generator=torch.Generator().manual_seed(0))
        same = {"input_features": features, "weight": 0.1, "seconds": CLIP_S}
        rows = [{**same, "tokens": processor.encode(text), "clip": text, "text": text} for text in TEXTS]
        return torch.utils.data.DataLoader(rows, batch_size=1, collate_fn=collate)  # type: ignore[arg-type]


class Norms(pl.Callback):
    """The gradient norm of each step, computed by its definition."""

    def __init__(self) -> None:
        self.of_steps: list[float] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        squares = [p.grad.double().square().sum() for p in pl_module.parameters() if p.grad is not None]
        self.of_steps.append(float(torch.stack(squares).sum().sqrt()))


def logged(folder: Path, key: str) -> dict[int, float]:
    """Value by step."""
    with (folder / "metrics.csv").open() as rows:
        return {int(row["step"]): float(row[key]) for row in csv.DictReader(rows) if row.get(key)}


def test_the_norm_is_that_of_the_whole_gradient_before_clipping(micro: Whisper, tmp_path: Path) -> None:
    norms = Norms()
    fit(micro, tmp_path, [norms, ThroughputMonitor()], max_steps=4)
    assert len(norms.of_steps) == 4
    assert min(norms.of_steps) > 1e-2
    assert logged(tmp_path, "train/grad_norm") == pytest.approx({2: norms.of_steps[1], 4: norms.of_steps[3]})


def test_throughput_counts_all_batches_since_the_last_log(
    micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(0, 10_000, 10))
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    fit(micro, tmp_path, [ThroughputMonitor()], max_steps=4)
    speeds = logged(tmp_path, "train/clips_per_s")
    # The clock is read twice, ten seconds apart: when the steps are done, and when the next ones start.
    assert speeds == pytest.approx({2: 2 / 10, 4: 2 / 10})
    hours = logged(tmp_path, "train/audio_hours_per_s")
    assert hours == pytest.approx({step: speed * CLIP_S / 3600 for step, speed in speeds.items()})


def test_throughput_excludes_validation_time(micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    class Hours(pl.Callback):
        def on_train_batch_start(self, *arguments: Any) -> None:
            clock[0] += 1

        def on_validation_epoch_start(self, *arguments: Any) -> None:
            clock[0] += 3600

    data: Any = Data(micro)
    data.val_dataloader = data.train_dataloader
    fit(micro, tmp_path, [ThroughputMonitor(), Hours()], data, max_steps=4, val_check_interval=1)
    assert logged(tmp_path, "train/clips_per_s") == pytest.approx({2: 1, 4: 1})


def fit(whisper: Whisper, folder: Path, callbacks: list[Any], data: Any = None, **settings: Any) -> None:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        logger=MetricsFile(folder),
        log_every_n_steps=2,
        num_sanity_val_steps=0,
        **quiet,
        **settings,
    )
    trainer.fit(WhisperModule(whisper, OPTIM, clip_norm=1e-3), datamodule=data or Data(whisper))
