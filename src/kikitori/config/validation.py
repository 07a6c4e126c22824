"""Checks a configuration before anything is loaded, and reports all problems at once with key, value and remedy.

The schema of a node is the signature of its `_target_`: argument names and types are read from there.
"""

import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from transformers import WhisperConfig

from kikitori.config import names
from kikitori.config.overrides import leaves
from kikitori.config.secrets import secret_fault
from kikitori.config.targets import allowed, faults
from kikitori.corpora.types import SPLITS
from kikitori.runtime.errors import ConfigError

REMEDIES = {
    "data.release": "pass data.release=/path/to/cv-corpus-27.0-2026-09-09-ja.tar.gz, or the folder it unpacks to",
    "data.manifest": "pass data.manifest=/path/to/metadata.csv",
    "data.name": "pass data.name=owner/dataset",
}
ABOVE_ZERO = {
    *("trainer.devices", "trainer.num_nodes", "trainer.strategy.collective_timeout_s"),
    *("optim.lr", "trainer.max_steps", "trainer.gradient_clip_val", "validation.every_steps", "model.window_s"),
    *("data.global_batch_size", "data.eval_batch_size", "generation.max_new_tokens", "generation.num_beams"),
    *("generation.max_tokens_per_s", "score.full_window_clips"),
    *("score.train_clips", "data.limit.train", "data.limit.validation", "data.limit.test"),
    *("data.max_duration_s", "data.micro_batch_size"),
}
NOT_NEGATIVE = {
    *("optim.weight_decay", "optim.warmup_steps", "seed"),
    *("data.num_workers", "data.min_duration_s", "data.window_margin_s"),
}
FRACTIONS = {
    *("model.dropout", "model.attention_dropout", "model.activation_dropout"),
    *("model.mask_time_prob", "model.mask_feature_prob", "data.max_reject_rate", "data.full_window_share"),
}
CHOICES = {
    "trainer.precision": ("auto", "16-mixed", "bf16-mixed", "32", "32-true"),
    "trainer.accelerator": ("auto", "cpu", "gpu", "cuda"),
    "callbacks.checkpoint.monitor": ("val/cer", "val/wer", "val/loss"),
    "callbacks.checkpoint.mode": ("min", "max"),
    "keep": ("all", "model", "scores"),
}
# Arguments of Lightning's Trainer that kikitori replaces: the values that change nothing, and the remedy.
REPLACED = {
    "trainer.accumulate_grad_batches": (
        (1,),
        "data.global_batch_size is the size of a step's batch; data.micro_batch_size splits it",
    ),
    "trainer.check_val_every_n_epoch": ((None,), "set validation.every_steps"),
    "trainer.fast_dev_run": ((False,), "set trainer.max_steps=2 and data.limit.train=8, .validation=8, .test=8"),
    "trainer.gradient_clip_algorithm": (("norm",), "must be norm"),
    "trainer.max_epochs": ((None, -1), "training is counted in optimizer steps; set trainer.max_steps"),
    "trainer.overfit_batches": ((0,), "set data.limit.train=8"),
    "trainer.val_check_interval": ((None,), "set validation.every_steps"),
}
# Types of keys that are not arguments of one of our functions.
TYPES: dict[str, Any] = {
    **dict.fromkeys(("seed", "validation.every_steps", "trainer.max_steps", "trainer.log_every_n_steps"), int),
    "trainer.num_nodes": int,
    "generation.max_tokens_per_s": float | Literal["auto"] | None,
    **dict.fromkeys(
        ("score.train_clips", "score.full_window_clips", "generation.max_new_tokens", "generation.num_beams"),
        int | None,
    ),
    **dict.fromkeys(("data.limit.train", "data.limit.validation", "data.limit.test"), int | None),
    "data.limit.sample": bool,
    "checkpoint": str | None,
    "splits": list[str],
    "resume": Literal["auto"] | None,
    "resume_accept": list[str],
    "resume_sweep": str | None,
    "trainer.devices": int | Literal["auto"],
    "trainer.gradient_clip_val": float | None,
}


def check_config(cfg: DictConfig) -> None:
    """Raises ConfigError with all problems of a composed configuration."""
    found = list(_problems(cfg))
    if found:
        count = f"{len(found)} problem{'s' * (len(found) > 1)}"
        raise ConfigError(f"{count} in the configuration\n" + "\n".join(f"  {line}" for line in found))


def _problems(cfg: DictConfig) -> Iterator[str]:
    for key in _missing(cfg):
        yield f"{key}: not set; {REMEDIES.get(key, f'pass {key}=...')}"
    try:
        values: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        yield f"{error.full_key}: {error.msg}"
        return
    flat = dict(leaves(values))
    for key, value in flat.items():
        if fault := secret_fault(str(value)):
            yield f"{key}: {fault}"
            return  # other problems would print it
    yield from (f"{key}: was renamed to {names.RENAMED_KEYS[key]}" for key in flat if key in names.RENAMED_KEYS)
    wrong_type = dict(faults(values)) | dict(_type_faults(values))
    wrong_type |= {
        key: f"must be {_describe(hint)}, got {flat[key]!r}"
        for key, hint in TYPES.items()
        if key in flat and not _fits(flat[key], hint)
    }
    yield from (f"{key}: {fault}" for key, fault in wrong_type.items())
    numbers = {key: v for key, v in flat.items() if key not in wrong_type and isinstance(v, int | float)}
    for key, value in numbers.items():
        if key in ABOVE_ZERO and not value > 0:
            yield f"{key}: must be above 0, got {value}"
        if key in NOT_NEGATIVE and not value >= 0:
            yield f"{key}: must not be below 0, got {value}"
        if key in FRACTIONS and not 0 <= value <= 1:
            yield f"{key}: must be between 0 and 1, got {value}"
    yield from _uneven_batch(flat)
    if "data.window_edges_s" not in wrong_type:
        yield from _window_faults(flat)
    for key, (neutral, remedy) in REPLACED.items():
        if key in flat and flat[key] not in neutral:
            yield f"{key}: {remedy}"
    if flat.get("optim._target_") == "kikitori.adamw" and "optim._partial_" in flat:
        yield "optim._partial_: kikitori.adamw returns a function of model and steps by itself; leave it out"
    for split in flat.get("splits", []) if "splits" not in wrong_type else []:
        if split not in SPLITS:
            yield f"splits: must be among {', '.join(SPLITS)}, got {split}"
    for key, choices in CHOICES.items():
        if key in flat and str(flat[key]) not in choices:
            yield f"{key}: must be one of {', '.join(choices)}, got {flat[key]}"


def _missing(cfg: DictConfig) -> list[str]:
    try:
        return sorted(OmegaConf.missing_keys(cfg))
    except OmegaConfBaseException:  # an interpolation that fails, which is reported when it is resolved
        return []


def _uneven_batch(flat: Mapping[str, Any]) -> Iterator[str]:
    """Reports a batch that the devices cannot divide evenly, if their number is known already."""
    keys = ("trainer.devices", "trainer.num_nodes")
    numbers = [flat.get(key, 1) for key in keys]
    batch = flat.get("data.global_batch_size")
    known = isinstance(batch, int) and all(isinstance(n, int) and n > 0 for n in numbers)
    # An evaluation takes no steps.
    if known and "validation.every_steps" in flat and batch % (parts := prod(numbers)):
        yield f"data.global_batch_size: must be a multiple of {parts} ({' x '.join(keys)}), got {batch}"


def _window_faults(flat: Mapping[str, Any]) -> Iterator[str]:
    """Reports settings of windows that are impossible or without effect."""
    edges, window = flat.get("data.window_edges_s", []), flat.get("data.window")
    if edges != sorted(set(edges)) or not all(edge > 0 for edge in edges):
        yield f"data.window_edges_s: must be ascending and above 0, got {edges}"
    if window == "bucketed" and not edges:
        yield "data.window_edges_s: data.window=bucketed needs at least one, such as [5,10]"
    if window == "full" and flat["data.full_window_share"]:
        yield "data.full_window_share: needs data.window=bucketed; with full, every step uses the full window"
    if flat.get("data.cache_encoder_outputs") is True and flat.get("model.freeze") != "encoder":
        yield "data.cache_encoder_outputs: needs a frozen encoder; add model.freeze=encoder (kikitori train only)"
    if flat.get("generation.max_tokens_per_s") == "auto" and "train" not in flat.get("splits", ["train"]):
        yield "generation.max_tokens_per_s: auto needs the train split, which is not in splits; give a number"


def _type_faults(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields (key, fault) for every value that its `_target_` does not take or that has another type, at any depth."""
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        yield from _type_faults(value, f"{prefix}.{key}" if prefix else str(key))
    # Other targets must not be imported; `faults` reports them.
    if not isinstance(node.get("_target_"), str) or node["_target_"] not in allowed(prefix):
        return
    try:
        parameters, open_ended = _parameters(get_object(node["_target_"]))
    except Exception as error:  # importing a user's module can raise anything
        yield f"{prefix}._target_", f"cannot be imported: {node['_target_']} ({error})"
        return
    for key, value in node.items():
        if key.startswith("_") or value == "???":
            continue
        if key not in parameters:
            if not open_ended and f"{prefix}.{key}" not in names.RENAMED_KEYS:
                hint = names.did_you_mean(key, parameters) or f"; it has {', '.join(parameters)}"
                yield f"{prefix}.{key}", f"{node['_target_']} has no such argument{hint}"
        elif not _fits(value, parameters[key]):
            yield f"{prefix}.{key}", f"must be {_describe(parameters[key])}, got {value!r}"


def _parameters(target: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """The name and type of each argument of a function or class, and whether it accepts further arguments.

    Arguments that a class passes to its base through ** are those of the base; **config stands for WhisperConfig.
    """
    functions = [target]
    if inspect.isclass(target):
        functions = [vars(base)["__init__"] for base in target.__mro__[:-1] if "__init__" in vars(base)]
    parameters: dict[str, Any] = {}
    for function in functions:
        signature = inspect.signature(function)
        hints = get_type_hints(function) if function.__module__.startswith("kikitori") else {}
        rest = None
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                rest = name
            elif name != "self" and parameter.kind is not parameter.VAR_POSITIONAL:
                parameters.setdefault(name, hints.get(name, Any))
        if rest == "config":
            return {**WhisperConfig.__annotations__, **parameters}, False
        if rest is None:
            return parameters, False
    return parameters, True


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of an annotated type; annotations that are not handled here accept everything."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, list) and len(value) == len(arguments) and all(map(_fits, value, arguments))
    if origin in (list, Sequence):
        return isinstance(value, list) and all(_fits(item, hint) for item in value for hint in arguments)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping)
    if hint in (int, float, str, bool, type(None)):
        types_of_hint = (int, float) if hint is float else hint
        return isinstance(value, types_of_hint) and (hint is bool or not isinstance(value, bool))
    return True


def _describe(hint: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(argument) for argument in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    if origin is tuple:
        return f"a list of {len(arguments)}"
    return words.get(hint, "a list" if origin in (list, Sequence) else "a mapping")
