"""The functions and classes that a `_target_` may name, and the objects built from them.

A configuration may come from an untrusted source. Names are compared as text before anything is imported: importing a
module runs its code, and a path through an allowed module (kikitori.runtime.paths.os.system) would reach everything.
Objects are built from plain, resolved values, so a text is never read as a configuration again.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from kikitori.config.arguments import ARGUMENTS, CALLBACKS, REQUIRED
from kikitori.config.names import OF_OTHER_TOOLS, RENAMED_TARGETS, did_you_mean
from kikitori.runtime.errors import ConfigError, one_line

_SUBMITIT = "hydra_plugins.hydra_submitit_launcher.submitit_launcher"
# The targets in conf/ and in Hydra's own choices, by the node that may contain them.
TARGETS: dict[str, tuple[str, ...]] = {
    "data": tuple(f"kikitori.{name}" for name in ("CommonVoice", "Demo", "Hub", "Manifest")),
    "joining": ("kikitori.Joining",),
    "model": ("kikitori.build_whisper", "kikitori.load_whisper"),
    "guard.sets": tuple(f"kikitori.{name}" for name in ("CommonVoice", "Demo", "Hub", "Manifest")),
    "augment": ("kikitori.Augmentation",),
    "adapter": ("kikitori.AdaLora", "kikitori.Lora"),
    "optim": ("kikitori.adamw", "kikitori.adamw8bit", "kikitori.muon"),
    "trainer": ("pytorch_lightning.Trainer",),
    "trainer.strategy": ("kikitori.ddp",),
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
    ),
    "hydra.sweeper.sampler": tuple(f"optuna.samplers.{name}Sampler" for name in ("CmaEs", "Grid", "Random", "TPE")),
    "hydra.sweeper.pruner": tuple(f"optuna.pruners.{name}Pruner" for name in ("Hyperband", "SuccessiveHalving")),
}
# The environment variable with further names, separated by commas. No file can set it; the processes of a run, the
# trials of a sweep and Slurm jobs inherit it.
OWN = "KIKITORI_TARGETS"
# The environment variable with the folder in which the command was typed; the processes of a run inherit it.
FOLDER = "KIKITORI_FOLDER"
TARGET, PARTIAL = OF_NODES = ("_target_", "_partial_")
# What is called later, with the values that a search chooses.
PARTIALS = frozenset(TARGETS["hydra.sweeper.sampler"])
# Instructions to Hydra that are not needed here: they change the arguments of a target or how nested nodes are built.
INSTRUCTIONS = ("_args_", "_convert_", "_recursive_")
# The packages of Lightning's callbacks; the first is the installed one.
LIGHTNING = ("pytorch_lightning.callbacks", "lightning.pytorch.callbacks")


def instantiate(node: Mapping[str, Any], key: str, **arguments: Any) -> Any:
    """Calls what a node names with its values.

    node: plain values; nodes inside it are built first. key: where it stands in the configuration, which decides the
    names that are allowed. arguments: further ones, passed on as they are.
    Raises ConfigError before anything is imported if a name or value is not allowed.
    """
    for place, fault in faults(node, key):
        raise ConfigError(f"{place}: {fault}")
    return _build(node, key, arguments)


def _build(node: Any, key: str, more: dict[str, Any] | None = None) -> Any:
    if isinstance(node, list):
        return [_build(item, f"{key}[{index}]") for index, item in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    values = {name: _build(value, f"{key}.{name}") for name, value in node.items() if name not in OF_NODES}
    values |= more or {}
    if TARGET not in node:
        return values
    function = locate(node[TARGET], key)
    return partial(function, **values) if node.get(PARTIAL) else function(**values)


def locate(target: str, key: str) -> Callable[..., Any]:
    """The function or class of an allowed name; raises ConfigError for any other.

    A class of the user's own may be in the folder in which the command was typed. That folder is searched last, so that
    no file in it can replace a library.
    """
    if target not in allowed(key):
        raise ConfigError(f"{key}.{TARGET}: {_refusal(target, allowed(key))}")
    if target in _own() and _folder() not in sys.path:
        sys.path.append(_folder())
    function: Callable[..., Any] = get_object(target)
    return function


def get_object(target: str) -> Any:
    """What a full name stands for; the modules in it are imported."""
    place, *rest = target.split(".")
    found: Any = import_module(place)
    for name in rest:
        place += f".{name}"
        is_module = hasattr(found, "__path__") and not hasattr(found, name) and find_spec(place)
        found = import_module(place) if is_module else getattr(found, name)
    return found


def import_fault(target: str, error: Exception) -> str:
    """Why a class cannot be imported."""
    if isinstance(error, ModuleNotFoundError) and error.name == target.partition(".")[0]:
        return f"{error.name} is not installed, nor in {_folder()}; type the command in the folder that holds it"
    hint = did_you_mean(error.name, dir(error.obj)) if isinstance(error, AttributeError) and error.name else ""
    return f"{type(error).__name__}: {one_line(error)}{hint}"


def faults(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yields (key, fault) for every target that is not allowed, and every argument that the table of arguments refuses.

    node: plain values, searched at any depth. key: of the node itself.
    """
    if isinstance(node, list | tuple):
        for index, item in enumerate(node):
            yield from faults(item, f"{key}[{index}]")
    elif isinstance(node, Mapping):
        target, callable_here = str(node.get(TARGET)), allowed(key)
        for name in REQUIRED.get(target, ()):
            if name not in node:
                yield f"{key}.{name}", f"not set; {ARGUMENTS[target][name].otherwise}"
        for name, value in node.items():
            place = f"{key}.{name}" if key else str(name)
            if name == TARGET and not (isinstance(value, str) and value in callable_here):
                yield place, _refusal(value, callable_here)
            elif name == TARGET and (reason := _unsuitable(value)):
                yield place, reason
            elif name == PARTIAL and (value is not True or target not in PARTIALS | _own()):
                yield place, "is not supported here; leave it out"
            elif name in INSTRUCTIONS:
                yield place, "is not supported in a configuration; leave it out"
            elif fault := _argument_fault(target, str(name), value):
                yield place, fault
            yield from faults(value, place)


def _refusal(target: Any, callable_here: frozenset[str]) -> str:
    text = target if isinstance(target, str) else ""
    if reason := _unsuitable(text):
        return reason
    new = f", which is now {RENAMED_TARGETS[text]}" if text in RENAMED_TARGETS else ""
    remedy = f"to use a class of your own, set {OWN}=its.full.name in the environment"
    names = " or ".join(sorted(callable_here)) or "nothing here"
    return f"may be {names}, got {target!r}{new}; {remedy}"


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
    if rules is None or name in OF_NODES or value == "???":
        return None
    if name not in rules and name in OF_OTHER_TOOLS:
        return f"set {OF_OTHER_TOOLS[name]}"
    if name not in rules:
        known = [known for known, rule in rules.items() if not rule.is_replaced]
        hint = did_you_mean(name, rules) or f"; there are {', '.join(known) or 'none'}"
        return f"{target} has no such argument, or kikitori does not support it{hint}"
    return None if rules[name].accepts(value) else rules[name].fault(value)


def allowed(key: str) -> frozenset[str]:
    """The targets that are allowed at this key: those of its node, and the user's own."""
    place = max((place for place in TARGETS if f"{key}.".startswith(f"{place}.")), key=len, default="")
    return _own().union(TARGETS.get(place, ()))


def _own() -> frozenset[str]:
    return frozenset(os.environ.get(OWN, "").replace(",", " ").split())


def _folder() -> str:
    """The folder in which the command was typed."""
    return os.environ.get(FOLDER, os.getcwd())
