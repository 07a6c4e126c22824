"""Data modules of the tests: every setting given, and a Trainer of one process or several."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kikitori.data.datamodule import CommonVoice
from kikitori.model.whisper import Whisper

ALL = {"train": None, "validation": None, "test": None, "sample": False}


LOADING: dict[str, Any] = {
    "language": "ja",
    "global_batch_size": 4,
    "eval_batch_size": 3,
    "window": None,
    "window_edges_s": [0.5, 0.8],
    "window_margin_s": 0.1,
    "full_window_share": 0.0,
    "micro_batch_size": None,
    "cache_encoder_outputs": False,
    "num_workers": 0,
    "group_by_length": True,
    "limit": ALL,
    "min_duration_s": 0.3,
    "max_duration_s": None,
    "silence_dbfs": -50,
    "max_reject_rate": 0.05,
    "allow_shared_speakers": False,
    "allow_shared_clips": False,
}


def common_voice(folder: Path, whisper: Whisper | None, **changes: Any) -> CommonVoice:
    processor = whisper.processor if whisper else None
    return CommonVoice(str(folder), ["train"], processor=processor, **{**LOADING, **changes})


def trainer_of(steps: int = 1, world_size: int = 1, rank: int = 0) -> Any:
    """What a data module reads of a Trainer that counts steps alone, as that of `kikitori train`."""
    counts = {"max_steps": steps, "max_epochs": -1, "check_val_every_n_epoch": None, "global_step": 0}
    return SimpleNamespace(**counts, world_size=world_size, global_rank=rank)
