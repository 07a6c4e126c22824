"""Checks a configuration before anything is loaded, and reports all problems at once with key, value and remedy.

The schema of a node is the signature of its `_target_`: argument names and types are read from there.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from math import inf, prod
from typing import Any, Literal, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from transformers import WhisperConfig

from kikitori.adapters import layers, quantised
from kikitori.adapters.settings import MAX_RANK, NO_AVERAGE, targets_fault
from kikitori.augmentation.settings import NOT_CACHEABLE, PROBABILITIES, setting_faults
from kikitori.config import names
from kikitori.config.arguments import ARGUMENTS, describe, fits
from kikitori.config.documentation import read_file
from kikitori.config.overrides import ALTERNATIVES, leaves
from kikitori.config.suggestions import unknown_key
from kikitori.config.targets import allowed, faults, import_fault, locate
from kikitori.corpora.types import SPLITS
from kikitori.joining.settings import range_faults
from kikitori.model.source import is_path
from kikitori.optim.schedule import Schedule, check_decay
from kikitori.references.names import is_reference
from kikitori.runtime.errors import ConfigError, one_line, raise_problems
from kikitori.runtime.files import expanded
from kikitori.runtime.paths import CONF
from kikitori.runtime.text import secret_fault

REMEDIES = {
    "data.release": "pass data.release=/path/to/cv-corpus-27.0-2026-09-09-ja.tar.gz, or the folder it unpacks to",
    "data.manifest": "pass data.manifest=/path/to/metadata.csv",
    "data.name": "pass data.name=owner/dataset",
}
ABOVE_ZERO = {
    *("trainer.strategy.collective_timeout_s", "optim.lr", "validation.every_steps", "validation.every_epochs"),
    *("data.global_batch_size", "data.eval_batch_size", "generation.max_new_tokens", "generation.num_beams"),
    *("generation.max_tokens_per_s", "score.full_window_clips", "model.window_s"),
    *("score.train_clips", "data.limit.train", "data.limit.validation", "data.limit.test"),
    *("data.max_duration_s", "data.micro_batch_size", "data.held_out", "optim.decay_steps", "ema.decay"),
    *("adapter.rank", "adapter.alpha", "adapter.initial_rank", "adapter.every_steps", "check"),
}
BELOW_ONE = {"optim.momentum", "loss.label_smoothing", "ema.decay"}
NOT_NEGATIVE = {
    *("optim.weight_decay", "optim.warmup_steps", "optim.momentum", "loss.label_smoothing", "seed"),
    *("guard.clips", "data.num_workers", "data.min_duration_s", "data.window_margin_s", "adapter.orthogonality"),
}
# inf: no limit.
UNLIMITED = {"generation.max_tokens_per_s", "data.max_duration_s"}
# NumPy takes 32 bits.
MAX_SEED = 2**32 - 1
FRACTIONS = {
    *("model.dropout", "model.attention_dropout", "model.activation_dropout"),
    *("model.mask_time_prob", "model.mask_feature_prob", "data.max_reject_rate", "data.full_window_share"),
    *("joining.share", "joining.same_speaker", "joining.timestamps", "joining.previous_text", "joining.non_speech"),
    *("adapter.dropout", "adapter.warmup_share", "adapter.final_share"),
}
# Types of keys that are not arguments of one of our functions.
TYPES: dict[str, Any] = {
    "seed": int,
    "validation.every_steps": int | None,
    "validation.every_epochs": float | None,
    "generation.max_tokens_per_s": float | Literal["auto"] | None,
    **dict.fromkeys(
        ("score.train_clips", "score.full_window_clips", "generation.max_new_tokens", "generation.num_beams"),
        int | None,
    ),
    **dict.fromkeys(("data.limit.train", "data.limit.validation", "data.limit.test"), int | None),
    "data.limit.sample": bool | int,
    "guard.clips": int,
    "guard.fail_if_worse": bool,
    **dict.fromkeys(("checkpoint", "against"), str | None),
    **dict.fromkeys(("runs", "to", "quantize"), list[str]),
    "check": int,
    "alphas": list[float],
    "alpha": float | None,
    "splits": list[str] | None,
    "resume": Literal["auto"] | None,
    "resume_accept": list[str],
    "resume_sweep": str | None,
    "keep": Literal["all", "model", "scores"],
    **dict.fromkeys(("loss.label_smoothing", "ema.decay"), float | None),
}
# Nodes whose keys are arguments of their target, or names of nodes with one.
GROUPS = ("data", "augment", "joining", "model", "adapter", "optim", "trainer", "logger", "callbacks")
# The names of the guard's own sets, besides those that begin with `joined`.
GUARDS_OWN = (
    *("clips", "8 kHz", "noise 10 dB", "timestamps", "reversed speech"),
    *("silence", "white noise", "pink noise", "tone", "no speech"),
)
# Keys by which the configuration of a command is recognised, in this order.
OWN_KEYS = {"average": "alphas", "guard": "against", "export": "to", "evaluate": "checkpoint", "train": "callbacks"}
# Those of them that may have no target of their own.
MAY_BE_EMPTY = ("logger", "callbacks", "adapter")
CHECKPOINTS = "pytorch_lightning.callbacks.ModelCheckpoint"
# Arguments that a pipeline passes itself, so that a configured value would be lost.
PASSED = {
    "data.augment": "choose augment=light, heavy, telephone or none",
    "data.joining": "choose joining=windows",
    "data.load_splits": "kikitori evaluate has splits for this; the other commands read all",
    "data.processor": "it follows from model",
    "data.seed": "set seed",
    "data.trainer": "it follows from trainer",
    "model.default_language": "set model.language or data.language",
}


def check_config(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of a composed configuration, which are never read as a configuration again.

    cfg: as Hydra composed it, or its plain values if they were resolved before. Raises ConfigError with all problems.
    """
    values: Any = cfg
    found = list(_missing(cfg)) if isinstance(cfg, DictConfig) else []
    try:
        if isinstance(cfg, DictConfig):
            values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
        found += _problems(values)
    except OmegaConfBaseException as error:
        found.append(f"{error.full_key}: {one_line(error)}")
    raise_problems(found)
    return dict(values)


def _problems(values: Mapping[str, Any]) -> Iterator[str]:
    flat = dict(leaves(values))
    for key, value in flat.items():
        if fault := secret_fault(str(value)):
            yield f"{key}: {fault}"
            return  # other problems would print it
    if odd := list(_odd_names(values)):
        yield from odd
        return
    yield from (f"{key}: was renamed to {names.RENAMED_KEYS[key]}" for key in flat if key in names.RENAMED_KEYS)
    yield from _unknown_keys(values)
    wrong_type = dict(_node_faults(values)) | dict(_type_faults(values))
    wrong_type |= dict(faults(values))
    typed = ((key, hint, _select(values, key)) for key, hint in TYPES.items())
    wrong_type |= {
        key: _wrong_type(key, hint, value)
        for key, hint, value in typed
        if (value is not None or key in flat) and not fits(value, hint)
    }
    if isinstance(augment := values.get("augment"), Mapping):
        wrong_type |= {f"augment.{key}": fault for key, fault in setting_faults(augment)}
    yield from (f"{key}: {fault}" for key, fault in wrong_type.items())
    numbers = {key: v for key, v in flat.items() if key not in wrong_type and isinstance(v, int | float)}
    for key, value in numbers.items():
        if key in ABOVE_ZERO and not value > 0:
            yield f"{key}: must be above 0, got {value}"
        if key in NOT_NEGATIVE and not value >= 0:
            yield f"{key}: must not be below 0, got {value}"
        if key in BELOW_ONE and not value < 1:
            yield f"{key}: must be below 1, got {value}"
        if key in FRACTIONS and not 0 <= value <= 1:
            yield f"{key}: must be between 0 and 1, got {value}"
        if key in (ABOVE_ZERO | NOT_NEGATIVE) - UNLIMITED and value == inf:
            yield f"{key}: must be a finite number, got {value}"
        if key == "seed" and value > MAX_SEED:
            yield f"{key}: must be at most {MAX_SEED}, got {value}"
    yield from _uneven_batch(flat)
    if not {"alpha", "alphas"} & wrong_type.keys():
        yield from _alpha_faults(flat)
    if "data.window_edges_s" not in wrong_type:
        yield from _window_faults(flat)
    yield from _joining_faults(values.get("joining"), flat, wrong_type)
    yield from (f"{key}: {remedy}" for key, remedy in PASSED.items() if key in flat)
    yield from _length_faults(flat, wrong_type)
    yield from _adapter_faults(flat, wrong_type)
    yield from _optimizer_faults(flat, wrong_type)
    yield from _missing_files(flat)
    yield from _second_checkpoint(_select(values, "callbacks") or {})
    if flat.get("splits") is not None and "splits" not in wrong_type:
        yield from _split_faults(flat["splits"])


def _odd_names(node: Any, at: str = "") -> Iterator[str]:
    """Reports keys that are no texts, as in optim={1:x}."""
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from _odd_names(item, f"{at}[{index}]")
    for name, value in node.items() if isinstance(node, Mapping) else ():
        key = f"{at}.{name}".lstrip(".")
        if not isinstance(name, str):
            yield f"{key}: the key {name!r} is not a text; give it another name"
        yield from _odd_names(value, key)


def _missing(cfg: DictConfig) -> Iterator[str]:
    # An interpolation that fails is reported when it is resolved.
    with suppress(OmegaConfBaseException):
        for key in sorted(OmegaConf.missing_keys(cfg)):
            yield f"{key}: not set; {REMEDIES.get(key, f'pass {key}=...')}"


def _unknown_keys(values: Mapping[str, Any]) -> Iterator[str]:
    """Reports keys that no file of the configuration has, in nodes without a target; their arguments are checked."""
    command = _command(values)
    for parent, known in _fixed_keys(command).items():
        node = _select(values, parent)
        for name in node if isinstance(node, Mapping) else ():
            key = f"{parent}.{name}".lstrip(".")
            if not parent and "." in name:
                yield f"{key}: in a file, keys are nested: {key.replace('.', ': {')}: ...{'}' * key.count('.')}"
            elif name not in known and key not in names.RENAMED_KEYS:
                yield unknown_key(key, command, [])


def _command(values: Mapping[str, Any]) -> str:
    return next((name for name, key in OWN_KEYS.items() if key in values), "prepare")


@cache
def _fixed_keys(command: str) -> dict[str, set[str]]:
    """The names that a command's root files have in each node without a target; "": at the top."""
    found: dict[str, set[str]] = {"": set()}
    for file in (read_file(CONF / "base.yaml"), read_file(CONF / f"{command}.yaml")):
        found[""] |= {group for group in file.groups if "/" not in group}
        for key in file.keys:
            parent, _, name = key.rpartition(".")
            found.setdefault(parent, set()).add(name)
    ours = (parent for parent in found if parent not in GROUPS and parent.partition(".")[0] != "hydra")
    return {parent: found[parent] for parent in ours}


def _node_faults(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Reports nodes that are missing or no mappings, as after trainer=null."""
    command = _command(values)
    chosen = [group for group in GROUPS if group in read_file(CONF / f"{command}.yaml").groups]
    for parent in (*_fixed_keys(command), *chosen):
        node, needs_target = _select(values, parent), parent in chosen and parent not in MAY_BE_EMPTY
        if parent and not (isinstance(node, Mapping) and ("_target_" in node or not needs_target)):
            choices = ", ".join(sorted(path.stem for path in (CONF / parent).glob("*.yaml")))
            must_be = "must be a mapping" + " with a _target_" * needs_target
            yield parent, f"{must_be}{f'; choose {parent}=... from {choices}' * bool(choices)}"
    for group in ("callbacks", "logger", "guard.sets"):
        for name, node in (_select(values, group) or {}).items():
            if not isinstance(node, Mapping) or "_target_" not in node:
                yield f"{group}.{name}", f"must be a mapping with a _target_, got {node!r}"
    for name in _select(values, "guard.sets") or {}:
        if name in GUARDS_OWN or str(name).startswith("joined"):
            yield f"guard.sets.{name}", "the guard has a set of this name; choose another"


def _second_checkpoint(callbacks: Mapping[str, Any]) -> Iterator[str]:
    """Reports a second ModelCheckpoint: each would remove files of the other, and only one can choose the best."""
    nodes = (
        name for name, node in callbacks.items() if isinstance(node, Mapping) and node.get("_target_") == CHECKPOINTS
    )
    first, *others = [*nodes, ""]
    for name in filter(None, others):
        yield f"callbacks.{name}: a second ModelCheckpoint; callbacks.{first}.monitor chooses the best checkpoints"


def _select(values: Any, key: str) -> Any:
    for part in filter(None, key.split(".")):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _wrong_type(key: str, hint: Any, value: Any) -> str:
    quote = f"; to make it a text, quote it: '{key}=\"...\"'"
    may_be_text = fits("", hint) and isinstance(value, bool | int | float)
    return f"must be {describe(hint)}, got {value!r}{quote * may_be_text}"


def _length_faults(flat: Mapping[str, Any], wrong_type: Mapping[str, str]) -> Iterator[str]:
    """Reports a length that is given twice or not at all, and a warm-up that does not end."""
    if "optim._target_" not in flat:
        return
    for key, other in ALTERNATIVES:
        one, two = flat.get(key), flat.get(other)
        if one is not None and two is not None:
            yield f"{other}: is {two}, but {key} is {one} as well; set one of them to null"
        if one is None and two is None and key in flat and not {key, other} & wrong_type.keys():
            yield f"{key}: is null, and so is {other}; set one of them"
    steps, warmup = flat.get("trainer.max_steps"), flat.get("optim.warmup_steps")
    # A resumed run was checked when it began.
    if isinstance(steps, int) and isinstance(warmup, int) and warmup >= steps and not flat.get("resume"):
        yield (
            f"optim.warmup_steps: must be below trainer.max_steps={steps}, got {warmup}; null takes a tenth of the "
            "steps, at most 500"
        )


def _adapter_faults(flat: Mapping[str, Any], wrong_type: Mapping[str, str]) -> Iterator[str]:
    """Reports an adapter without its package, and settings of one that is impossible."""
    if "adapter._target_" not in flat:
        yield from (f"{key}: belongs to an adapter; choose adapter=lora" for key in flat if key.startswith("adapter."))
        return
    if not layers.is_available():
        yield f"adapter: {layers.EXTRA}"
    if (bits := flat.get("adapter.base_bits")) and not quantised.is_available():
        yield f"adapter.base_bits: {bits} {quantised.EXTRA}"
    if "adapter.targets" not in wrong_type and (fault := targets_fault(flat.get("adapter.targets"))):
        yield f"adapter.targets: {fault}"
    rank, first = flat.get("adapter.rank"), flat.get("adapter.initial_rank")
    if isinstance(rank, int) and rank > MAX_RANK:
        yield f"adapter.rank: must be at most {MAX_RANK}, got {rank}"
    if flat["adapter._target_"] == "kikitori.AdaLora" and flat.get("ema.decay") is not None:
        yield f"ema.decay: is {flat['ema.decay']}, but {NO_AVERAGE}"
    if isinstance(rank, int) and isinstance(first, int) and not rank < first <= MAX_RANK:
        yield f"adapter.initial_rank: must be above adapter.rank={rank} and at most {MAX_RANK}, got {first}"


def _optimizer_faults(flat: Mapping[str, Any], wrong_type: Mapping[str, str]) -> Iterator[str]:
    """Reports an optimizer whose package is not installed, and numbers that do not fit together."""
    if flat.get("optim._target_") == "kikitori.adamw8bit" and not find_spec("bitsandbytes"):
        yield "optim: adamw8bit needs the package bitsandbytes: pip install 'kikitori[bitsandbytes]'; or choose adamw"
    betas = flat.get("optim.betas")
    if isinstance(betas, list) and "optim.betas" not in wrong_type and not all(0 <= beta < 1 for beta in betas):
        yield f"optim.betas: must be from 0 to below 1, got {betas}"
    steps, resumed = flat.get("trainer.max_steps"), flat.get("resume")
    if flat.get("optim.schedule") == "wsd" and isinstance(steps, int) and not resumed:
        try:
            check_decay(Schedule("wsd", flat.get("optim.warmup_steps"), flat.get("optim.decay_steps")), steps)
        except ConfigError as error:
            yield str(error)


def _missing_files(flat: Mapping[str, Any]) -> Iterator[str]:
    """Reports a model or checkpoint whose path does not exist; corpora are read soon after."""
    checkpoint, model = flat.get("checkpoint"), flat.get("model.name")
    # The models of a guard or an export may be names on the Hub, and all may be references.
    is_name = isinstance(checkpoint, str) and not is_path(checkpoint)
    may_be_name = is_reference(checkpoint) or (bool({"against", "to"} & flat.keys()) and is_name)
    if isinstance(checkpoint, str) and checkpoint and not expanded(checkpoint).exists() and not may_be_name:
        yield f"checkpoint: {checkpoint} does not exist; give a run folder, a model folder, or a .ckpt file"
    elif isinstance(model, str) and not checkpoint and is_path(model) and not expanded(model).exists():
        yield (
            f"model.name: {model} does not exist; give a folder with a model, such as model/ of a completed run, or a "
            "name on the Hugging Face Hub, such as openai/whisper-small"
        )


def _uneven_batch(flat: Mapping[str, Any]) -> Iterator[str]:
    """Reports a batch that the devices cannot divide evenly, if their number is known already."""
    keys = ("trainer.devices", "trainer.num_nodes")
    numbers = [flat.get(key, 1) for key in keys]
    batch = flat.get("data.global_batch_size")
    known = isinstance(batch, int) and all(isinstance(n, int) and n > 0 for n in numbers)
    # An evaluation takes no steps.
    if known and "validation.every_steps" in flat and batch % (parts := prod(numbers)):
        yield f"data.global_batch_size: must be a multiple of {parts} ({' x '.join(keys)}), got {batch}"


def _split_faults(splits: list[str]) -> Iterator[str]:
    """Reports splits to score that do not exist, none at all, and one that is named twice."""
    if wrong := [split for split in splits if split not in SPLITS]:
        yield f"splits: must be among {', '.join(SPLITS)}, got {', '.join(wrong)}"
    elif not splits or len(set(splits)) < len(splits):
        yield f"splits: must be different ones, at least one of {', '.join(SPLITS)}, got {splits}"


def _alpha_faults(flat: Mapping[str, Any]) -> Iterator[str]:
    """Reports shares of weights that are none, or whose curve has no base or lacks what is to be saved."""
    alphas, alpha = flat.get("alphas", [0]), flat.get("alpha")
    if wrong := [value for value in (*alphas, alpha or 0) if not 0 <= value <= 1]:
        yield f"alphas: must be from 0 (the base) to 1 (the tuned models), got {wrong[0]}"
    if not alphas or len({f"{value:g}" for value in alphas}) < len(alphas):  # as files and tables name them
        yield f"alphas: must be different numbers, at least one, in six digits, got {alphas}"
    elif 0 not in alphas:
        yield f"alphas: must contain 0, the base, which the others are compared with, got {alphas}"
    elif alpha is not None and alpha not in alphas:
        yield f"alpha: must be one of alphas={alphas}, got {alpha}"
    if "alphas" in flat and alpha is None and "validation" not in (flat.get("splits") or ()):
        yield "splits: alpha=null chooses by validation; add validation, or set alpha to one of alphas"


def _window_faults(flat: Mapping[str, Any]) -> Iterator[str]:
    """Reports settings of windows that are impossible or without effect."""
    edges, window = flat.get("data.window_edges_s", []), flat.get("data.window")
    if edges != sorted(set(edges)) or not all(0 < edge < inf for edge in edges):
        yield f"data.window_edges_s: must be ascending, finite and above 0, got {edges}"
    if window == "bucketed" and not edges:
        yield "data.window_edges_s: data.window=bucketed needs at least one, such as [5,10]"
    if flat.get("data.cache_encoder_outputs") is True and flat.get("model.freeze") != "encoder":
        yield "data.cache_encoder_outputs: needs a frozen encoder; add model.freeze=encoder (kikitori train only)"
    if flat.get("data.cache_encoder_outputs") is True and any(flat.get(f"augment.{key}") for key in PROBABILITIES):
        yield f"data.cache_encoder_outputs: {NOT_CACHEABLE}"


def _joining_faults(joining: Any, flat: Mapping[str, Any], wrong_type: Mapping[str, str]) -> Iterator[str]:
    """Reports ranges of joined windows that are impossible, and settings that contradict them."""
    if not isinstance(joining, Mapping) or any(key.startswith("joining.") for key in wrong_type):
        return
    yield from (f"joining.{key}: {fault}, got {joining[key]}" for key, fault in range_faults(dict(joining)))
    changes_training = joining.get("share") or joining.get("non_speech")
    if changes_training and flat.get("data.cache_encoder_outputs") is True:
        yield "data.cache_encoder_outputs: keeps the outputs of single clips; set it to false, or choose joining=none"
    is_micro = flat.get("model._target_") == "kikitori.build_whisper"
    if is_micro and joining.get("share") and joining.get("timestamps") and not flat.get("model.timestamps"):
        yield (
            f"joining.timestamps: is {joining['timestamps']}, but the model's tokenizer has no timestamps; pass "
            "model.timestamps=true, or joining.timestamps=0"
        )


def _type_faults(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields (key, fault) for every value that its `_target_` does not take or that has another type, at any depth."""
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        yield from _type_faults(value, f"{prefix}.{key}" if prefix else str(key))
    # Other targets must not be imported; `faults` reports them. Those of libraries have a table.
    target = node.get("_target_")
    if not isinstance(target, str) or target not in allowed(prefix) or target in ARGUMENTS:
        return
    try:
        parameters, required, open_ended = _parameters(locate(target, prefix))
    except Exception as error:  # importing a user's module can raise anything
        yield f"{prefix}._target_", f"cannot be imported: {target} ({import_fault(target, error)})"
        return
    yield from ((f"{prefix}.{key}", f"not set; {target} has no default for it") for key in required - node.keys())
    for key, value in node.items():
        if key.startswith("_") or value == "???":
            continue
        if key not in parameters:
            if not open_ended and f"{prefix}.{key}" not in names.RENAMED_KEYS:
                hint = names.did_you_mean(key, parameters) or f"; it has {', '.join(parameters)}"
                yield f"{prefix}.{key}", f"{node['_target_']} has no such argument{hint}"
        elif not fits(value, parameters[key]):
            yield f"{prefix}.{key}", _wrong_type(f"{prefix}.{key}", parameters[key], value)


def _parameters(target: Callable[..., Any]) -> tuple[dict[str, Any], set[str], bool]:
    """The types of the arguments of a function or class, those without a default, and whether it accepts others.

    Arguments that a class passes to its base through ** are those of the base; **config stands for WhisperConfig.
    """
    functions = [target]
    if inspect.isclass(target):
        functions = [vars(base)["__init__"] for base in target.__mro__[:-1] if "__init__" in vars(base)]
    parameters: dict[str, Any] = {}
    required: set[str] = set()
    for function in functions:
        signature = inspect.signature(function)
        hints = get_type_hints(function) if function.__module__.startswith("kikitori") else {}
        rest = None
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                rest = name
            elif name != "self" and parameter.kind is not parameter.VAR_POSITIONAL:
                if name not in parameters and parameter.default is parameter.empty:
                    required.add(name)
                parameters.setdefault(name, hints.get(name, Any))
        if rest == "config":
            return {**WhisperConfig.__annotations__, **parameters}, required, False
        if rest is None:
            return parameters, required, False
    return parameters, required, True
