"""Decodes and filters a corpus."""

from pathlib import Path

from omegaconf import DictConfig

from kikitori.config.validation import check_config
from kikitori.data.datamodule import SpeechDataModule
from kikitori.pipelines.builders import build_data, set_up
from kikitori.runtime.console import quiet_libraries


def prepare(cfg: DictConfig, folder: Path) -> SpeechDataModule:
    """Read and decode a corpus into the store, and tell what would be left out; no model is needed."""
    check_config(cfg)
    quiet_libraries()
    data = build_data(cfg)
    set_up(cfg, data, None, folder, {"cost": {}})
    return data
