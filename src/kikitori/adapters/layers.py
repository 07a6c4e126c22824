"""Puts adapters into a model's linear layers, in place, and takes them out again.

The layers are those of peft, which is imported here only. A model's own functions see the adapted layers: it keeps its
class, and only the adapters are trained.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from kikitori.adapters.merging import MAGNITUDE, A, B, E, merge_into
from kikitori.adapters.quantised import dequantise, quantise
from kikitori.adapters.settings import ATTENTION, FEED_FORWARD, AdaLora, Lora
from kikitori.runtime.console import silence
from kikitori.runtime.errors import ModelError

EXTRA = "needs the package peft: pip install 'kikitori[peft]'"
# peft's name for the only adapter of a model.
NAME = "default"
_LINEAR = re.compile(rf"model\.(encoder|decoder)\.layers\.\d+\.(\w+\.)?({'|'.join((*ATTENTION, *FEED_FORWARD))})")
_TENSOR = re.compile(rf"(.+)\.({A}|{B}|{E}|{MAGNITUDE})\.{NAME}(\.weight)?")


def is_available() -> bool:
    """Returns whether peft is installed, without importing it."""
    return find_spec("peft") is not None


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a Whisper without an adapter that one may change, by name."""
    return {
        name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and _LINEAR.fullmatch(name)
    }


def matching(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """The names of the layers that targets name and that are trained: with a frozen encoder those of the decoder.

    Raises ModelError if there is none.
    """
    found = {n: layer for n, layer in linears(model).items() if any(n.endswith(f".{target}") for target in targets)}
    if trained := [name for name, layer in found.items() if layer.weight.requires_grad]:
        return trained
    raise ModelError(
        f"adapter.targets={list(targets)}: all of these layers are frozen, so nothing would be trained; load the model "
        "with model.freeze=none, or with encoder, which leaves those of the decoder"
    )


def inject(model: nn.Module, adapter: Lora, modules: Sequence[str]) -> None:
    """Puts an adapter into the named layers, stores the base in `adapter.base_bits`, and freezes everything else.

    Raises ModelError if peft or bitsandbytes is not installed, or the model has no such layer.
    """
    if not is_available():
        raise ModelError(f"an adapter ({adapter.kind}) {EXTRA}")
    silence("bitsandbytes")  # which peft imports
    from peft import inject_adapter_in_model

    if unknown := set(modules) - linears(model).keys():
        raise ModelError(f"an adapter changes {min(unknown)}, and the model has no such linear layer")
    if adapter.base_bits:
        quantise(model, linears(model), adapter.base_bits)
    inject_adapter_in_model(peft_config(adapter, modules), model, NAME)


def peft_config(adapter: Lora, modules: Sequence[str]) -> Any:
    """peft's configuration of an adapter. Without a task_type, for which peft would wrap the model's forward."""
    from peft import AdaLoraConfig, LoraConfig

    shared: dict[str, Any] = {"lora_alpha": adapter.alpha, "lora_dropout": adapter.dropout}
    shared["target_modules"] = list(modules)
    if isinstance(adapter, AdaLora):
        schedule = {"tinit": 0, "tfinal": 0, "total_step": 1}  # until the training's length is known
        ranks = {"init_r": adapter.matrix_rank, "target_r": adapter.rank, "deltaT": adapter.every_steps}
        return AdaLoraConfig(**shared, **ranks, **schedule, orth_reg_weight=adapter.orthogonality)
    kind = {"use_rslora": adapter.kind == "rslora", "use_dora": adapter.kind == "dora"}
    return LoraConfig(r=adapter.rank, **shared, **kind)


def adapter_tensors(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The tensors of a model's adapter by the name of their layer, see `Tensors`."""
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, parameter in model.named_parameters():
        if tensor := _TENSOR.fullmatch(key):
            found[tensor[1]][tensor[2]] = parameter.detach()
    return dict(found)


def merge(model: nn.Module, scale: float) -> None:
    """Merges a model's adapter into its layers, which become plain linear layers again, with fp32 weights."""
    dequantise(model)
    for name, tensors in adapter_tensors(model).items():
        layer: Any = model.get_submodule(name)
        merge_into(layer.base_layer, tensors, scale)
        model.set_submodule(name, layer.base_layer)
    del model.peft_config
