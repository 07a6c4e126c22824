"""An adapter's folder, as peft writes and reads it: adapter_config.json and adapter_model.safetensors.

A folder may come from a stranger. Of its configuration only the fields below are used, and one that would change the
arithmetic in a way that is not implemented here is refused. Tensors are read by name and shape, and merged here: peft
is not needed, and nothing of it runs. kikitori.json next to them, which peft ignores, has what a model's folder keeps
in its own files, such as the language and the windows.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kikitori.adapters.layers import NAME, adapter_tensors, linears
from kikitori.adapters.merging import MAGNITUDE, A, B, E, merge_into
from kikitori.adapters.quantised import dequantise, quantise
from kikitori.adapters.settings import BASE_BITS, MAX_RANK, Lora, scale_of
from kikitori.runtime.errors import ModelError, one_line, shortened
from kikitori.runtime.files import OBJECT, UNREADABLE, is_regular, parse, plain, read_text, write_json

CONFIG, WEIGHTS, FACTS = "adapter_config.json", "adapter_model.safetensors", "kikitori.json"
# What peft puts before the names of a model's own layers.
PREFIX = "base_model.model."
# The tensors of each kind of adapter.
PARTS = {"lora": {A, B}, "rslora": {A, B}, "dora": {A, B, MAGNITUDE}, "adalora": {A, B, E}}
_NAME = re.compile(rf"{re.escape(PREFIX)}(.+)\.({A}|{B}|{E}|{MAGNITUDE})(\.weight)?")


def _is_rank(value: Any) -> bool:
    return type(value) is int and 0 < value <= MAX_RANK


def _is_scale(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e6


def _is_place(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) < 1_000 and value.isprintable()


def _is_revision(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\w[\w.-]{0,200}", value) is not None


# The fields of adapter_config.json that are used, as kinds for `parse`.
USED = {
    "peft_type!": ("LORA", "ADALORA").__contains__,
    "lora_alpha!": _is_scale,
    **dict.fromkeys(("r", "init_r"), _is_rank),
    **dict.fromkeys(("use_rslora", "use_dora"), bool),
    "base_model_name_or_path": (_is_place, None),
    "revision": (_is_revision, None),
}
# What kikitori.json holds, for `parse`; the model checks the values.
KEPT = {
    **dict.fromkeys(("language", "task"), str),
    "generation": dict.fromkeys(("max_new_tokens!", "num_beams!"), int),
    **dict.fromkeys(("window", "trained_on", "timestamps"), OBJECT),
    "languages": [str],
    "base_bits": BASE_BITS.__contains__,
}
# Fields that change nothing here: of training, of peft, or stated by the tensors as well.
WITHOUT_EFFECT = {
    *("task_type", "auto_mapping", "peft_version", "inference_mode", "megatron_config", "megatron_core", "eva_config"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "runtime_config"),
    *("qalora_group_size", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"),
}
# The values of other fields that change nothing.
NEUTRAL = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian")}


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter that was read from a folder.

    kind, scale: see `Lora`. base: what its configuration names as the model it was trained on, with its revision on the
    Hub. tensors: by the name of their layer. facts: what kikitori.json holds; empty in a folder of another program.
    """

    folder: Path
    kind: str
    scale: float
    base: str | None
    revision: str | None
    tensors: dict[str, dict[str, Tensor]]
    facts: dict[str, Any] = field(default_factory=dict)

    def merge_into(self, model: nn.Module, base: str) -> None:
        """Merges the adapter into a model. base: the model's name, for messages.

        Raises ModelError, which names both, if the adapter was trained on another model, and without bitsandbytes if it
        was trained on weights in 8 or 4 bits.
        """
        layers = linears(model)
        trained_on = f", which was trained on {self.base}," if self.base else ""
        another = f"the adapter {self.folder}{trained_on} does not fit {base}"
        remedy = "pass the model it was trained on as model.base"
        if unknown := self.tensors.keys() - layers.keys():
            raise ModelError(f"{another}: it changes {min(unknown)}, which that model does not have; {remedy}")
        for name, tensors in self.tensors.items():
            layer = layers[name]
            sizes, own = (tensors[A].shape[1], tensors[B].shape[0]), (layer.in_features, layer.out_features)
            if sizes != own:
                raise ModelError(
                    f"{another}: its {name} has {sizes[0]} inputs and {sizes[1]} outputs, that model's {own[0]} and "
                    f"{own[1]}; {remedy}"
                )
        if bits := self.facts.get("base_bits"):
            # What it was trained on, in fp32.
            quantise(model, layers, bits)
            dequantise(model)
            layers = linears(model)
        for name, tensors in self.tensors.items():
            merge_into(layers[name], tensors, self.scale)


def is_adapter(folder: Path) -> bool:
    """Returns whether a folder holds an adapter and no model."""
    has_model = any(folder.glob("model*.safetensors")) or (folder / "model" / "config.json").is_file()
    return (folder / CONFIG).is_file() and not has_model


def save_adapter(
    model: Any, adapter: Lora, base: str | None, revision: str | None, facts: Mapping[str, Any], folder: Path
) -> None:
    """Writes the adapter of a model. base: the name or folder of the model without it. facts: for kikitori.json."""
    tensors = adapter_tensors(model)
    config = model.peft_config[NAME].to_dict()
    config |= {"base_model_name_or_path": base, "revision": revision, "inference_mode": True}
    config["peft_type"] = config["peft_type"].value
    config["target_modules"] = sorted(_shortest(model, adapter.targets, list(tensors)))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, config)
    write_json(folder / FACTS, {**facts, **({"base_bits": adapter.base_bits} if adapter.base_bits else {})})
    flat = {_key(module, part, adapter.kind): value for module, of in tensors.items() for part, value in of.items()}
    save_file({key: value.contiguous() for key, value in flat.items()}, folder / WEIGHTS, {"format": "pt"})


def add_timestamps(facts: Mapping[str, Any], folder: Path) -> None:
    """Adds what was found of the timestamps of the merged model, see `Whisper.timestamps`, to a saved adapter."""
    write_json(folder / FACTS, {**_read_object(folder / FACTS, KEPT), "timestamps": dict(facts)})


def _key(module: str, part: str, kind: str) -> str:
    """The name of a tensor in peft's files: AdaLoRA's matrices are parameters, LoRA's are layers with a weight."""
    return f"{PREFIX}{module}.{part}" + ".weight" * (kind != "adalora" and part != MAGNITUDE)


def _shortest(model: nn.Module, targets: Sequence[str], modules: list[str]) -> list[str]:
    """The targets as they were configured if they stand for exactly these layers, as without a frozen encoder."""
    every = {name.removesuffix(".base_layer") for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    named = {name for name in every if any(name.endswith(f".{target}") for target in targets)}
    return list(targets) if named == set(modules) else modules


def read_adapter(folder: Path) -> SavedAdapter:
    """Reads an adapter of kikitori or peft. Raises ModelError if it is damaged, or of a kind that is not supported."""
    try:
        config = _read_object(folder / CONFIG, USED)
        facts = _read_object(folder / FACTS, KEPT) if (folder / FACTS).exists() else {}
        kind = _kind(config)
        rank = config.get("init_r", 12) if kind == "adalora" else config.get("r", 8)
        tensors = _read_tensors(folder / WEIGHTS, kind)
        for name, of in tensors.items():
            _check_shapes(name, of, kind, rank)
    except UNREADABLE as error:
        raise ModelError(f"the adapter {folder} cannot be loaded: {one_line(error)}") from error
    except Exception as error:  # of safetensors
        raise ModelError(f"the adapter {folder}: {WEIGHTS} is damaged: {one_line(error)}") from error
    places = (config.get("base_model_name_or_path"), config.get("revision"))
    return SavedAdapter(folder, kind, scale_of(kind, config["lora_alpha"], rank), *places, tensors, facts)


def _read_object(path: Path, kind: dict[str, Any]) -> dict[str, Any]:
    """Reads plain values of a kind for `parse`. Raises errors of UNREADABLE."""
    found: dict[str, Any] = parse(plain(read_text(path)), kind, path.name)
    return found


def _kind(config: Mapping[str, Any]) -> str:
    """The kind of an adapter. Raises ValueError for fields that would change what it computes."""
    for key, value in config.items():
        if key in WITHOUT_EFFECT or key in {used.rstrip("!") for used in USED}:
            continue
        if key == "rank_pattern" and config["peft_type"] == "ADALORA":  # the tensors have their ranks
            continue
        if not (any(value is v or (value == v and isinstance(v, str)) for v in NEUTRAL.get(key, ())) or not value):
            raise ValueError(
                f"{CONFIG} has {key}={str(value)[:60]}, which is not supported; merge it with peft's merge_and_unload "
                "and save that with save_pretrained"
            )
    if config["peft_type"] == "ADALORA":
        return "adalora"
    if config.get("use_rslora") and config.get("use_dora"):
        raise ValueError(f"{CONFIG} has both use_rslora and use_dora, which is not supported")
    return "rslora" if config.get("use_rslora") else "dora" if config.get("use_dora") else "lora"


def _read_tensors(path: Path, kind: str) -> dict[str, dict[str, Tensor]]:
    """The tensors of a file by layer, in fp32. Raises ValueError for a name that no adapter of this kind has."""
    if not is_regular(path):
        raise ValueError(f"{path.name} is missing, or no regular file; adapters in other formats may run code")
    found: dict[str, dict[str, Tensor]] = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118
            name = _NAME.fullmatch(key)
            if name is None or name[2] not in PARTS[kind] or key != _key(name[1], name[2], kind):
                raise ValueError(f"{path.name} holds {key[:200]}, which is no part of an adapter of the kind {kind}")
            shape, dtype = file.get_slice(key).get_shape(), file.get_slice(key).get_dtype()
            if dtype not in ("F32", "F16", "BF16", "F64") or math.prod(shape) > MAX_RANK * 2**16:
                raise ValueError(f"{path.name} holds {key[:200]} of type {dtype} and shape {shape}")
            found.setdefault(name[1], {})[name[2]] = file.get_tensor(key).float()
    if not found:
        raise ValueError(f"{path.name} holds no tensors")
    return found


def _check_shapes(name: str, tensors: Mapping[str, Tensor], kind: str, rank: int) -> None:
    """Raises ValueError unless the tensors of a layer fit each other, and the rank of the configuration."""
    if missing := PARTS[kind] - tensors.keys():
        raise ValueError(f"{name[:200]} lacks {shortened(sorted(missing))}")
    shapes = {part: tuple(tensor.shape) for part, tensor in tensors.items()}
    own, inputs, outputs = shapes[A][0] if shapes[A] else 0, shapes[A][-1:], shapes[B][:1]
    if shapes != {
        part: {A: (own, *inputs), B: (*outputs, own), E: (own, 1), MAGNITUDE: outputs}[part] for part in shapes
    }:
        raise ValueError(f"the shapes of {name[:200]} do not fit each other: {shapes}")
    # Of AdaLoRA, a file holds the ranks that were left.
    if own > rank or (kind != "adalora" and own != rank):
        raise ValueError(f"{name[:200]} has a rank of {own}, but {CONFIG} one of {rank}")
    if any(not tensor.isfinite().all() for tensor in tensors.values()):
        raise ValueError(f"the weights of {name[:200]} are not finite")
