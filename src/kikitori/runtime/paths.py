"""Locations of the configuration tree, the demo corpus, the cache and the current run's folder."""

import os
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

HERE = Path(__file__).parents[1]
# A wheel has conf/ inside the package, a checkout has it at its top.
CONF = next(folder for folder in (HERE / "conf", HERE.parents[1] / "conf") if folder.is_dir())
DEMO = HERE / "corpora" / "demo" / "common-voice-ja"


def cache_folder() -> Path:
    """Returns the folder named by KIKITORI_CACHE, by default ~/.cache/kikitori."""
    return Path(os.environ.get("KIKITORI_CACHE") or "~/.cache/kikitori").expanduser()


def run_folder() -> Path:
    """Returns the folder that Hydra created for this run."""
    return Path(HydraConfig.get().runtime.output_dir)


def shown_path(path: Path) -> str:
    """Returns a path as it is shown: relative to the working folder if it is below that."""
    there, here = Path(path).absolute(), Path.cwd()
    return str(there.relative_to(here)) if here in there.parents else str(path)
