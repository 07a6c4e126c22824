"""`kikitori prepare`: decodes and filters a corpus, without a model."""

from pathlib import Path

from omegaconf import DictConfig

from kikitori.config.overrides import to_plain
from kikitori.config.validation import check_config
from kikitori.data.datamodule import SpeechDataModule
from kikitori.pipelines.builders import build_data, prepare_data
from kikitori.runtime.console import quiet_libraries


def prepare(cfg: DictConfig, folder: Path) -> SpeechDataModule:
    """Decodes a corpus into the audio cache and filters it; rejects.jsonl in `folder` lists what is left out."""
    check_config(cfg)
    quiet_libraries()
    config = to_plain(cfg)
    data = build_data(config)
    prepare_data(config, data, folder, {"cost": {}})
    return data
