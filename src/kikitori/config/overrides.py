"""Overrides of the command line, resolvers of the configuration, and its plain values."""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kikitori.config import names
from kikitori.config.documentation import help_text
from kikitori.runtime.errors import ConfigError
from kikitori.runtime.paths import CONF

LONGEST_NAME = 180
# The environment variable that holds the arguments of the command line, as JSON.
LINE = "KIKITORI_LINE"
# Hydra's options that choose configuration files, and those whose value is a folder.
CONFIG_FOLDER = ("--config-dir", "-cd", "--config-path", "-cp")
CONFIG = (*CONFIG_FOLDER, "--config-name", "-cn")
# All that take a value.
WITH_VALUE = (*CONFIG, "--cfg", "-c", "--package", "-p", "--info", "-i", "--experimental-rerun")


def split_words(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """Options with their values, and overrides."""
    options: list[str] = []
    overrides: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if word.startswith("-"):
            options += [word, *islice(remaining, int("=" not in word and _is_option(word, WITH_VALUE)))]
        else:
            overrides.append(word)
    return options, overrides


def chooses_configuration(options: Iterable[str]) -> bool:
    """Whether one of the options is --config-dir, --config-path or --config-name."""
    return any(_is_option(word, CONFIG) for word in options)


def config_folders(words: Sequence[str]) -> list[Path]:
    """The user's own configuration folders that a command line names."""
    return list(_config_folders(*split_words(words)))


def _config_folders(options: Sequence[str], overrides: Sequence[str]) -> Iterator[Path]:
    for word, following in pairwise([*options, ""]):
        if _is_option(word, CONFIG_FOLDER):
            _, equals, value = word.partition("=")
            yield Path(value if equals else following)
    for word in overrides:
        if word.startswith("hydra.searchpath="):
            yield from map(Path, re.findall(r"file://([^,\]'\"]+)", word))


def _is_option(word: str, options: Sequence[str]) -> bool:
    """Whether a word is one of the options; argparse accepts abbreviated long ones."""
    name = word.partition("=")[0]
    return name in options or (len(name) > 2 and name[:2] == "--" and any(o.startswith(name) for o in options))


def swept_values(overrides: Sequence[str]) -> dict[str, str]:
    """The overrides of a job that its sweep varies, on the command line or in `hydra.sweeper.params`."""
    # A Slurm job finds the sweep's command line in its environment only.
    line = json.loads(os.environ[LINE]) if LINE in os.environ else sys.argv[1:]
    given = OverridesParser.create().parse_overrides([word for word in split_words(line)[1] if "=" in word])
    keys = {override.get_key_element() for override in given if override.is_sweep_override()}
    keys |= set(OmegaConf.select(HydraConfig.get(), "sweeper.params") or {}) if HydraConfig.initialized() else set()
    pairs = [override.partition("=") for override in overrides]
    return {key: value for key, _, value in pairs if key in keys}


def short_number(value: str) -> str:
    """A value with at most four significant digits where it is a fraction with many, as a search draws it."""
    try:
        number = float(value)
    except ValueError:
        return value
    return f"{number:.4g}" if len(value) > 8 and not number.is_integer() else value


def overrides() -> list[str]:
    """The overrides of this run; with the command's name they are enough to repeat it."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def quote_foreign(word: str) -> str:
    """Quotes the value of an override with letters beyond ASCII, which Hydra reads in quotes only; others stay."""
    key, equals, value = word.partition("=")
    plain = re.fullmatch(r"[^\s'\"\[\]{}(),$\\][^'\"\[\]{}(),$\\]*", value)
    return override(key, value) if equals and plain and key.isascii() and not value.isascii() else word


def override(key: str, value: object) -> str:
    """An override with its value quoted, for paths with special characters."""
    quoted = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{quoted}'"


def config_options(hydra: DictConfig, command: str) -> list[str]:
    """The options --config-path, --config-dir and --config-name that a command was started with."""
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
    """The name of the folder of this run's sweep; None for a single run.

    A trial that runs in its own process finds the folder in KIKITORI_SWEEP.
    """
    folder = os.environ.get("KIKITORI_SWEEP", "")
    if not folder and HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN:
        folder = HydraConfig.get().sweep.dir
    return Path(folder).resolve().name if folder else None


def swept(overrides: Sequence[str]) -> str:
    """The values that a sweep varies as the name of a folder: optim.lr-1e-05_seed-0.

    Constant overrides, paths for example, are left out. Characters other than letters, digits, dots and signs become
    hyphens; the many digits of a value that a search drew are rounded.
    """
    values = {key: short_number(value) for key, value in swept_values(overrides).items()}
    named = [(key, re.sub(r"[^\w.+-]+", "-", value).strip("-")[-60:]) for key, value in values.items()]
    name = "_".join(f"{key.replace('/', '.')}-{value}" for key, value in named)
    # File systems allow 255 bytes. The job's number in front keeps truncated names distinct.
    return name.encode()[:LONGEST_NAME].decode(errors="ignore")


def tasks(devices: int | str) -> int:
    """The number of Slurm tasks per machine: one per device."""
    if not isinstance(devices, int):
        raise ConfigError(f"trainer.devices={devices}: Slurm needs a number; pass trainer.devices=8")
    return devices


OmegaConf.register_new_resolver("kikitori.help", help_text, replace=True)
OmegaConf.register_new_resolver("kikitori.tasks", tasks, replace=True)
OmegaConf.register_new_resolver("kikitori.swept", swept, replace=True)


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """A node as plain values, with interpolations resolved."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


def flatten(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields dotted key and value of each leaf of a configuration, with names of earlier versions translated."""
    for key, value in leaves(config):
        name = key.rpartition(".")[2]
        if name != "_partial_":  # optim.adamw had it in earlier versions
            value = names.RENAMED_TARGETS.get(str(value), value) if name == "_target_" else value
            yield names.RENAMED_KEYS.get(key, key), value


def leaves(node: Any, prefix: str = "", into_lists: bool = False) -> Iterator[tuple[str, Any]]:
    """Yields dotted key and value of each leaf; lists are leaves unless into_lists is set."""
    if isinstance(node, Mapping) or (into_lists and isinstance(node, list)):
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key), into_lists)
    else:
        yield prefix, node
