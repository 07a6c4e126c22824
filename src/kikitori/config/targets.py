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

from kikitori.config.arguments import ARGUMENTS, CALLBACKS, REQUIRED
from kikitori.config.names import OF_OTHER_TOOLS, RENAMED_TARGETS, did_you_mean
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
        "pytorch_lightning.callbacks.DeviceStatsMonitor",
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
# The packages of Lightning's callbacks; the first is the installed one.
LIGHTNING = ("pytorch_lightning.callbacks", "lightning.pytorch.callbacks")


def instantiate(node: Any, **arguments: Any) -> Any:
    """Hydra's `instantiate` for nodes with allowed targets. Raises ConfigError before any other target is imported.

    The node's interpolations are resolved once, so that exactly what was checked is called.
    """
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    for key, fault in faults(plain, names=allowed()):
        raise ConfigError(f"{key}: {fault}")
    return hydra_instantiate(plain, **arguments)


def faults(node: Any, key: str = "", names: frozenset[str] | None = None) -> Iterator[tuple[str, str]]:
    """Yields (key, fault) for every target that is not allowed, and every argument that the table of arguments refuses.

    node: plain values, searched at any depth.
    key: of the node itself. names: the allowed targets if the key is unknown.
    """
    if isinstance(node, list | tuple):
        for index, item in enumerate(node):
            yield from faults(item, f"{key}[{index}]", names)
    elif isinstance(node, Mapping):
        target = str(node.get("_target_"))
        for name in REQUIRED.get(target, ()):
            if name not in node:
                yield f"{key}.{name}", f"not set; {ARGUMENTS[target][name].otherwise}"
        for name, value in node.items():
            place = f"{key}.{name}" if key else str(name)
            callable_here = allowed(key) if names is None else names
            if name == "_target_" and not (isinstance(value, str) and value in callable_here):
                yield place, _refusal(value, callable_here)
            elif name == "_target_" and (reason := _unsuitable(value)):
                yield place, reason
            elif name in INSTRUCTIONS:
                yield place, "is not supported in a configuration; leave it out"
            elif fault := _argument_fault(target, str(name), value):
                yield place, fault
            yield from faults(value, place, names)


def _refusal(target: Any, callable_here: frozenset[str]) -> str:
    text = target if isinstance(target, str) else ""
    if reason := _unsuitable(text):
        return reason
    new = f", which is now {RENAMED_TARGETS[text]}" if text in RENAMED_TARGETS else ""
    remedy = f"to use a class of your own, set {OWN}=its.full.name in the environment"
    return f"may be {_words(callable_here)}, got {target!r}{new}; {remedy}"


def _unsuitable(target: str) -> str | None:
    """Why one of Lightning's callbacks is not used here; None for any other class."""
    package, _, name = target.rpartition(".")
    if not package.startswith(LIGHTNING) or target in ARGUMENTS:
        return None
    if (known := f"{LIGHTNING[0]}.{name}") in ARGUMENTS:
        return f"must be {known}, got {target!r}"
    reason = CALLBACKS.get(name, "it was not tested with kikitori; derive a class of your own")
    return f"{name} is not supported: {reason}"


def _argument_fault(target: str, name: str, value: Any) -> str | None:
    """What is wrong with an argument of a class in the table; None for other classes."""
    rules = ARGUMENTS.get(target)
    if rules is None or name.startswith("_") or value == "???":
        return None
    if name not in rules and name in OF_OTHER_TOOLS:
        return f"set {OF_OTHER_TOOLS[name]}"
    if name not in rules:
        known = [known for known, rule in rules.items() if not rule.is_replaced]
        hint = did_you_mean(name, rules) or f"; there are {', '.join(known) or 'none'}"
        return f"{target} has no such argument, or kikitori does not support it{hint}"
    return None if rules[name].accepts(value) else rules[name].fault(value)


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
