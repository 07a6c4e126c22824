"""Checks of a configuration before anything is loaded: every problem at once, each with its key, value and remedy.

The schema of a node is the signature of its `_target_`: names and types are read from there, so that they stand once.
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

from kikitori.config.secrets import secret_in
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
}
# Types of keys that are no argument of a target of ours.
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
    "resume": Literal["auto"] | None,
    "resume_accept": list[str],
    "resume_sweep": str | None,
    "trainer.devices": int | Literal["auto"],
    "trainer.gradient_clip_val": float | None,
}


def check_config(cfg: DictConfig) -> None:
    """Raise ConfigError with every problem of a composed configuration."""
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
    flat = dict(_leaves(values))
    for key, value in flat.items():
        if variable := secret_in(str(value)):
            yield f"{key}: holds the value of {variable}, and a configuration is written to files; leave it out"
            return  # other faults would show it
    wrong_type = dict(faults(values)) | dict(_type_faults(values))
    wrong_type |= {
        key: f"must be {_words(hint)}, got {flat[key]!r}"
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
    yield from _not_ours(flat)
    for split in values.get("splits", []):
        if split not in SPLITS:
            yield f"splits: must be among {', '.join(SPLITS)}, got {split}"
    for key, choices in CHOICES.items():
        if key in flat and str(flat[key]) not in choices:
            yield f"{key}: must be one of {', '.join(choices)}, got {flat[key]}"


def _missing(cfg: DictConfig) -> list[str]:
    try:
        return sorted(OmegaConf.missing_keys(cfg))
    except OmegaConfBaseException:  # an interpolation that fails, which is told by itself
        return []


def _uneven_batch(flat: Mapping[str, Any]) -> Iterator[str]:
    """The batch of a step that its devices cannot share evenly, where their number is known already."""
    keys = ("trainer.devices", "trainer.num_nodes")
    numbers = [flat.get(key, 1) for key in keys]
    batch = flat.get("data.global_batch_size")
    known = isinstance(batch, int) and all(isinstance(n, int) and n > 0 for n in numbers)
    # Whoever only evaluates takes no steps.
    if known and "validation.every_steps" in flat and batch % (parts := prod(numbers)):
        yield f"data.global_batch_size: must be a multiple of {parts} ({' x '.join(keys)}), got {batch}"


def _window_faults(flat: Mapping[str, Any]) -> Iterator[str]:
    """What is asked of windows that cannot be, or would be without effect."""
    edges, window = flat.get("data.window_edges_s", []), flat.get("data.window")
    if edges != sorted(set(edges)) or not all(edge > 0 for edge in edges):
        yield f"data.window_edges_s: must ascend from above 0, got {edges}"
    if window == "bucketed" and not edges:
        yield "data.window_edges_s: data.window=bucketed needs at least one, such as [5,10]"
    if window == "full" and flat["data.full_window_share"]:
        yield "data.full_window_share: is for data.window=bucketed; with full, every step is in the whole window"
    if flat.get("data.cache_encoder_outputs") is True and flat.get("model.freeze") != "encoder":
        yield "data.cache_encoder_outputs: needs an encoder that is not trained; add model.freeze=encoder, to kikitori train"
    if flat.get("generation.max_tokens_per_s") == "auto" and "train" not in flat.get("splits", ["train"]):
        yield "generation.max_tokens_per_s: auto asks the train split, which is not read; give a number"


def _not_ours(flat: Mapping[str, Any]) -> Iterator[str]:
    """Arguments of Lightning's Trainer that mean nothing where the module optimizes by itself."""
    if flat.get("trainer.accumulate_grad_batches", 1) != 1:
        yield "trainer.accumulate_grad_batches: data.global_batch_size is a step's; data.micro_batch_size goes through it in parts"
    if flat.get("trainer.gradient_clip_algorithm", "norm") != "norm":
        yield "trainer.gradient_clip_algorithm: must be norm"


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def _type_faults(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(key, fault) of every value that does not fit the parameter of its `_target_`, at any depth."""
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        yield from _type_faults(value, f"{prefix}.{key}" if prefix else str(key))
    # Another is told by `faults`, and must not be imported.
    if not isinstance(node.get("_target_"), str) or node["_target_"] not in allowed(prefix):
        return
    try:
        parameters, open_ended = _parameters(get_object(node["_target_"]))
    except Exception as error:  # whatever importing a foreign module raises
        yield f"{prefix}._target_", f"cannot be imported: {node['_target_']} ({error})"
        return
    for key, value in node.items():
        if key.startswith("_") or value == "???":
            continue
        if key not in parameters:
            if not open_ended:
                yield f"{prefix}.{key}", f"{node['_target_']} has no such argument; it has {', '.join(parameters)}"
        elif not _fits(value, parameters[key]):
            yield f"{prefix}.{key}", f"must be {_words(parameters[key])}, got {value!r}"


def _parameters(target: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """Name and type of each argument of a function or class, and whether it takes others besides.

    Arguments that a class passes on through ** to its base are the base's; those named `config` are WhisperConfig's.
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
    """Whether a plain value is of an annotated type; annotations not known here fit everything."""
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
        allowed = (int, float) if hint is float else hint
        return isinstance(value, allowed) and (hint is bool or not isinstance(value, bool))
    return True


def _words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(argument) for argument in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    if origin is tuple:
        return f"a list of {len(arguments)}"
    return names.get(hint, "a list" if origin in (list, Sequence) else "a mapping")
