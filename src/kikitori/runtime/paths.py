"""Paths: the configuration tree, the demo corpus, the cache, the folder of the current run."""

import os
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

HERE = Path(__file__).parents[1]
# In a wheel conf/ lies inside the package; in a checkout at its top.
CONF = next(folder for folder in (HERE / "conf", HERE.parents[1] / "conf") if folder.is_dir())
DEMO = HERE / "corpora" / "demo" / "common-voice-ja"


def cache_folder() -> Path:
    """~/.cache/kikitori, or KIKITORI_CACHE."""
    return Path(os.environ.get("KIKITORI_CACHE") or "~/.cache/kikitori").expanduser()


def run_folder() -> Path:
    """The folder that Hydra made for this run."""
    return Path(HydraConfig.get().runtime.output_dir)
