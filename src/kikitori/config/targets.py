"""Which callables a configuration may name. A `_target_` is a call, and a configuration may come from a stranger.

The names stand here as text and are compared as text, before anything is imported: importing a module runs it, and a
path through an allowed one (kikitori.paths.os.system) reaches everything.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.utils import instantiate as hydra_instantiate
from omegaconf import OmegaConf

from kikitori.runtime.errors import ConfigError

_SUBMITIT = "hydra_plugins.hydra_submitit_launcher.submitit_launcher"
# What conf/, and what else of Hydra's own can be chosen with it, name; by the node that they may stand in.
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
# Names that earlier versions wrote into run folders, and what they are now.
RENAMED = {
    "kikitori.datamodule.CommonVoice": "kikitori.CommonVoice",
    "kikitori.datamodule.Demo": "kikitori.Demo",
    "kikitori.datamodule.Hub": "kikitori.Hub",
    "kikitori.datamodule.Manifest": "kikitori.Manifest",
    "kikitori.optim.build": "kikitori.adamw",
    "kikitori.pruning.PruneByStudy": "kikitori.OptunaPruning",
    "kikitori.tracking.RunLogger": "kikitori.WandbRunLogger",
    "kikitori.trainer.ddp": "kikitori.ddp",
    "kikitori.whisper.build": "kikitori.build_whisper",
    "kikitori.whisper.load": "kikitori.load_whisper",
}
# Further names, with commas between them. In the environment, which no file sets, and which a run's processes, the
# trials of a sweep and Slurm's jobs inherit.
OWN = "KIKITORI_TARGETS"
# Instructions to Hydra that nothing here needs: they change what a target is called with, or who makes what is in it.
INSTRUCTIONS = ("_args_", "_convert_", "_recursive_")


def instantiate(node: Any, **arguments: Any) -> Any:
    """Hydra's `instantiate` of a node that names allowed targets alone. Raises ConfigError before it imports another.

    What is checked is what is called: the node's interpolations are resolved once, before both.
    """
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    for key, fault in faults(plain, names=allowed()):
        raise ConfigError(f"{key}: {fault}")
    return hydra_instantiate(plain, **arguments)


def faults(node: Any, key: str = "", names: frozenset[str] | None = None) -> Iterator[tuple[str, str]]:
    """(key, fault) of whatever would call what it may not, at any depth of plain values.

    key: the node's own in the configuration. names: what may be called where that is not known.
    """
    if isinstance(node, list | tuple):
        for index, item in enumerate(node):
            yield from faults(item, f"{key}[{index}]", names)
    elif isinstance(node, Mapping):
        for name, value in node.items():
            place = f"{key}.{name}" if key else str(name)
            callable_here = allowed(key) if names is None else names
            if name == "_target_" and not (isinstance(value, str) and value in callable_here):
                yield place, f"may be {_words(callable_here)}, got {value!r}; a class of your own: {OWN}=its.full.name"
            elif name in INSTRUCTIONS:
                yield place, "is not for a configuration to say; leave it out"
            yield from faults(value, place, names)


def allowed(key: str = "") -> frozenset[str]:
    """The targets that the node at this key may name; those of all nodes without a key."""
    own = filter(None, os.environ.get(OWN, "").split(","))
    here = (names for place, names in TARGETS.items() if not key or f"{key}.".startswith(f"{place}."))
    return frozenset(own).union(*here)


def _words(names: frozenset[str]) -> str:
    return " or ".join(sorted(names)) or "nowhere here"
