"""`kikitori prepare`: decodes and filters a corpus, without a model."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from kikitori.config.validation import check_config
from kikitori.data.datamodule import SpeechDataModule
from kikitori.runtime.console import quiet_libraries
from kikitori.steps.builders import build_data, prepare_data


def prepare(cfg: DictConfig | dict[str, Any], folder: Path) -> SpeechDataModule:
    """Decodes a corpus into the audio cache and filters it; rejects.jsonl in `folder` lists what is left out."""
    config = check_config(cfg)
    quiet_libraries()
    data = build_data(config)
    prepare_data(config, data, folder, {"cost": {}})
    return data
