"""The functions and classes that a `_target_` may name, since a configuration may come from an untrusted source.

Names are compared as text before anything is imported: importing a module runs its code, and a path through an allowed
module (kikitori.runtime.paths.os.system) would reach everything.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.utils import instantiate as hydra_instantiate
from omegaconf import OmegaConf

from kikitori.config.names import RENAMED_TARGETS
from kikitori.runtime.errors import ConfigError

_SUBMITIT = "hydra_plugins.hydra_submitit_launcher.submitit_launcher"
# The targets in conf/ and in Hydra's own choices, by the node that may contain them.
TARGETS: dict[str, tuple[str, ...]] = {
    "data": tuple(f"kikitori.{name}" for name in ("CommonVoice", "Demo", "Hub", "Manifest")),
    "model": ("kikitori.build_whisper", "kikitori.load_whisper"),
    "optim": ("kikitori.adamw",),
    "trainer": ("pytorch_lightning.Trainer", "kikitori.ddp"),
    "logger": ("kikitori.WandbRunLogger", "pytorch_lightning.loggers.TensorBoardLogger"),
    "callbacks": (
        "kikitori.OptunaPruning",
        "pytorch_lightning.callbacks.EarlyStopping",
        "pytorch_lightning.callbacks.ModelCheckpoint",
    ),
    "hydra.launcher": (
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        "hydra_plugins.kikitori_plugins.LocalLauncher",
        f"{_SUBMITIT}.LocalLauncher",
        f"{_SUBMITIT}.SlurmLauncher",
    ),
    "hydra.sweeper": (
        "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
        "hydra_plugins.kikitori_plugins.OptunaSweeper",
        *(f"optuna.samplers.{name}Sampler" for name in ("CmaEs", "Grid", "Random", "TPE")),
        *(f"optuna.pruners.{name}Pruner" for name in ("Hyperband", "SuccessiveHalving")),
    ),
}
# The environment variable with further names, separated by commas. No file can set it; the processes of a run, the
# trials of a sweep and Slurm jobs inherit it.
OWN = "KIKITORI_TARGETS"
# Instructions to Hydra that are not needed here: they change the arguments of a target or how nested nodes are built.
INSTRUCTIONS = ("_args_", "_convert_", "_recursive_")


def instantiate(node: Any, **arguments: Any) -> Any:
    """Hydra's `instantiate` for nodes with allowed targets. Raises ConfigError before any other target is imported.

    The node's interpolations are resolved once, so that exactly what was checked is called.
    """
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    for key, fault in faults(plain, names=allowed()):
        raise ConfigError(f"{key}: {fault}")
    return hydra_instantiate(plain, **arguments)


def faults(node: Any, key: str = "", names: frozenset[str] | None = None) -> Iterator[tuple[str, str]]:
    """Yields (key, fault) for every target that is not allowed, at any depth of plain values.

    key: of the node itself. names: the allowed targets if the key is unknown.
    """
    if isinstance(node, list | tuple):
        for index, item in enumerate(node):
            yield from faults(item, f"{key}[{index}]", names)
    elif isinstance(node, Mapping):
        for name, value in node.items():
            place = f"{key}.{name}" if key else str(name)
            callable_here = allowed(key) if names is None else names
            if name == "_target_" and not (isinstance(value, str) and value in callable_here):
                new = (
                    f", which is now {RENAMED_TARGETS[value]}"
                    if isinstance(value, str) and value in RENAMED_TARGETS
                    else ""
                )
                remedy = f"to use a class of your own, set {OWN}=its.full.name in the environment"
                yield place, f"may be {_words(callable_here)}, got {value!r}{new}; {remedy}"
            elif name in INSTRUCTIONS:
                yield place, "is not supported in a configuration; leave it out"
            yield from faults(value, place, names)


def allowed(key: str = "") -> frozenset[str]:
    """The targets that are allowed at this key; without a key, those of all nodes."""
    own = filter(None, os.environ.get(OWN, "").split(","))
    here = (names for place, names in TARGETS.items() if not key or f"{key}.".startswith(f"{place}."))
    return frozenset(own).union(*here)


def add_working_folder() -> None:
    """Makes modules in the working folder importable if the environment names classes of the user's own.

    Last in the search path, so that no file there can replace a library.
    """
    if os.environ.get(OWN) and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _words(names: frozenset[str]) -> str:
    return " or ".join(sorted(names)) or "nothing here"
