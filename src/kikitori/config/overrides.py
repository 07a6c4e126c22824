"""Where things are: the configuration tree, the demo corpus, the cache, the run's folder."""

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kikitori.config.targets import RENAMED
from kikitori.runtime.errors import ConfigError
from kikitori.runtime.paths import CONF

LONGEST_NAME = 180
# The environment variable that holds the words of the command line, as JSON.
LINE = "KIKITORI_LINE"


def swept_values(overrides: Sequence[str]) -> dict[str, str]:
    """Of a job's overrides those that its sweep varies: on the command line, or by `hydra.sweeper.params`."""
    # A job that Slurm runs has the sweep's line in its environment alone.
    line = json.loads(os.environ[LINE]) if LINE in os.environ else sys.argv[1:]
    given = OverridesParser.create().parse_overrides([a for a in line if "=" in a and not a.startswith("-")])
    keys = {override.get_key_element() for override in given if override.is_sweep_override()}
    keys |= set(OmegaConf.select(HydraConfig.get(), "sweeper.params") or {}) if HydraConfig.initialized() else set()
    pairs = [override.partition("=") for override in overrides]
    return {key: value for key, _, value in pairs if key in keys}


def overrides() -> list[str]:
    """What the command line changed: with the command's name, enough to run it again."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def override(key: str, value: object) -> str:
    """An override of any value, a path with any signs above all."""
    quoted = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{quoted}'"


def config_options(hydra: DictConfig, command: str) -> list[str]:
    """--config-path, --config-dir and --config-name where a command was given them."""
    options: list[str] = []
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line":
            options += ["--config-dir", source.path]
        elif source.provider == "main" and Path(source.path).resolve() != CONF.resolve():
            options += ["--config-path", source.path]
    return options + (["--config-name", hydra.job.config_name] if hydra.job.config_name != command else [])


def options(command: str) -> list[str]:
    """The `config_options` of this run."""
    return config_options(HydraConfig.get(), command) if HydraConfig.initialized() else []


def sweep_name() -> str | None:
    """The folder's name of the sweep that this run is part of; None for a single run.

    A trial that a launcher starts as a process of its own finds the folder in KIKITORI_SWEEP.
    """
    folder = os.environ.get("KIKITORI_SWEEP", "")
    if not folder and HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN:
        folder = HydraConfig.get().sweep.dir
    return Path(folder).resolve().name if folder else None


def swept(overrides: Sequence[str]) -> str:
    """`swept_values` as a folder's name: optim.lr-1e-05_seed-0.

    A constant override, a path above all, has no place in a name; what a value holds besides letters, digits, dots and
    signs becomes a hyphen.
    """
    named = [(key, re.sub(r"[^\w.+-]+", "-", value).strip("-")[-60:]) for key, value in swept_values(overrides).items()]
    name = "_".join(f"{key.replace('/', '.')}-{value}" for key, value in named)
    # A file system takes 255 bytes; the job's number tells apart what is cut alike.
    return name.encode()[:LONGEST_NAME].decode(errors="ignore")


def tasks(devices: int | str) -> int:
    """How many tasks Slurm is to start on a machine: one a device."""
    if not isinstance(devices, int):
        raise ConfigError(f"trainer.devices={devices}: Slurm must be told how many; pass trainer.devices=8")
    return devices


OmegaConf.register_new_resolver("kikitori.tasks", tasks, replace=True)
OmegaConf.register_new_resolver("kikitori.swept", swept, replace=True)


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """A node as plain values, interpolations resolved."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Each leaf of a configuration with its dotted key."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        elif key == "_target_":
            yield f"{prefix}{key}", RENAMED.get(value, value)
        else:
            yield f"{prefix}{key}", value
