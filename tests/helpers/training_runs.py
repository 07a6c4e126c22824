"""Four clips, their loaders and a quiet Trainer, for tests that train some steps."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from kikitori.data.collate import collate
from kikitori.data.sampler import SampledClip, StepSampler
from kikitori.model.whisper import Whisper
from kikitori.optim.optimizers import adamw

OPTIM = adamw(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.98), warmup_steps=1, schedule="linear")


TEXTS = ["犬", "赤い犬", "猫", "白い猫と犬"]


def examples(whisper: Whisper) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "input_features": torch.randn(80, whisper.processor.frames, generator=generator),
            "tokens": whisper.processor.encode(text),
            "clip": text,
            "text": text,
            "seconds": 0.5,
        }
        for text in TEXTS
    ]


def loader(whisper: Whisper, batch_size: int) -> torch.utils.data.DataLoader[Any]:
    data: Any = examples(whisper)
    return torch.utils.data.DataLoader(data, batch_size=batch_size, collate_fn=collate)


class Drawn(torch.utils.data.Dataset[Any]):
    """Examples by the keys of a training sampler."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __getitem__(self, draw: SampledClip) -> dict[str, Any]:
        return {**self.rows[draw.clip_index], "weight": draw.weight}


def training(whisper: Whisper, global_batch_size: int, steps: int, clips: int = 4) -> torch.utils.data.DataLoader[Any]:
    rows = examples(whisper)[:clips]
    tokens = [len(row["tokens"]) - 1 for row in rows]
    sampler = StepSampler([1.0] * clips, [100] * clips, tokens, global_batch_size, steps, 0, False)
    return torch.utils.data.DataLoader(Drawn(rows), batch_sampler=sampler, collate_fn=collate)


def trainer(tmp_path: Path, **arguments: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(default_root_dir=tmp_path, **{**quiet, "enable_checkpointing": False, **arguments})
