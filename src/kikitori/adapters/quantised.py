"""Frozen linear layers whose weights are stored in 8 or 4 bits.

Storage and kernels are those of bitsandbytes, which is imported here when a layer is made. Its own layers are not used:
they change biases to the precision of the training, read a saved 4-bit weight by a description in the file, and in 8
bits round the inputs as well, so that a merged model would compute something else.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from kikitori.runtime.console import silence
from kikitori.runtime.errors import ModelError

Bits = Literal[4, 8]
EXTRA = "needs the package bitsandbytes: pip install 'kikitori[bitsandbytes]'"
# Numbers that share a scale in 4 bits; in 8 bits it is those of one output.
BLOCK = 64
# The 16 values of 4 bits: quantiles of a normal distribution (Dettmers et al. 2023).
KIND = "nf4"


def is_available() -> bool:
    """Returns whether bitsandbytes is installed, without importing it."""
    return find_spec("bitsandbytes") is not None


def quantise(model: nn.Module, layers: Mapping[str, nn.Linear], bits: Bits) -> None:
    """Stores the weights of some linear layers of a model, by name, in 8 or 4 bits, in place; they are frozen then.

    Raises ModelError if bitsandbytes is not installed.
    """
    if not is_available():
        raise ModelError(f"adapter.base_bits={bits} {EXTRA}")
    for name, layer in layers.items():
        model.set_submodule(name, QuantisedLinear(layer, bits))


def dequantise(model: nn.Module) -> None:
    """Replaces the layers of `quantise` by plain ones, which compute the same."""
    for name, layer in quantised_layers(model).items():
        model.set_submodule(name, layer.as_linear())


def quantised_layers(model: nn.Module) -> dict[str, "QuantisedLinear"]:
    """The layers of a model whose weights are stored in 8 or 4 bits, by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantisedLinear)}


class QuantisedLinear(nn.Linear):
    """A linear layer whose weight is stored in 8 or 4 bits and is no parameter; each use computes it anew.

    In a state_dict it is a plain fp32 weight. Storing that gives the same bits again, so that a checkpoint restores
    exactly this layer, and nothing of a file reaches the kernels but through `_store`.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, layer: nn.Linear, bits: Bits) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bits = layer.in_features, layer.out_features, bits
        self.register_parameter("bias", layer.bias)
        self._store(layer.weight.detach())

    def _store(self, weight: Tensor) -> None:
        """Stores a weight (outputs, inputs), computed on the CPU, so that every device has the same bits."""
        functional = _functional()
        device, weight = weight.device if "codes" not in self._buffers else self.codes.device, weight.cpu().float()
        if self.bits == 8:
            # As bitsandbytes' own layers do, from fp16: its GPU kernels know nothing else.
            codes, scales, _ = functional.int8_vectorwise_quant(weight.half())
        else:
            # In rows of one block each: of other shapes, the CPU kernel ignores that blocks may span two rows.
            blocks = pad(weight.flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
            codes, state = functional.quantize_4bit(blocks, blocksize=BLOCK, compress_statistics=False, quant_type=KIND)
            scales = state.absmax
        # Not in the state_dict, and not broadcast by DDP, see `kikitori.training.trainer.ddp`.
        self.register_buffer("codes", codes.to(device), persistent=False)
        self.register_buffer("scales", scales.to(device), persistent=False)

    def weight_as(self, dtype: torch.dtype) -> Tensor:
        """Computes the weight (outputs, inputs), in fp32, and rounds it."""
        if self.bits == 8:
            return (self.codes * (self.scales / 127)[:, None]).to(dtype)
        functional, shape = _functional(), torch.Size((len(self.scales), BLOCK))
        state = functional.QuantState(self.scales, shape=shape, blocksize=BLOCK, quant_type=KIND, dtype=dtype)
        flat = functional.dequantize_4bit(self.codes, state).flatten()
        return flat[: self.in_features * self.out_features].view(self.out_features, self.in_features)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight in fp32, a new tensor each time."""
        return self.weight_as(torch.float32)

    def as_linear(self) -> nn.Linear:
        """Returns a plain layer with this weight, frozen as this one is."""
        layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        layer.weight, layer.bias = nn.Parameter(self.weight, requires_grad=False), self.bias
        return layer

    def forward(self, inputs: Tensor) -> Tensor:
        kind = inputs.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs.dtype
        # In rows: of other inputs, the result would be a view, which AdaLoRA could not change in place.
        outputs: Tensor = _Linear.apply(inputs.to(dtype).reshape(-1, self.in_features), self)
        return outputs.view(*inputs.shape[:-1], self.out_features)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        # On the CPU, where a checkpoint is written: all weights at once may not fit the GPU.
        destination[f"{prefix}weight"] = self.weight.cpu()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, missing: Any, unexpected: Any, errors: Any
    ) -> None:
        name, shape = f"{prefix}weight", (self.out_features, self.in_features)
        weight = state_dict.pop(name, None)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        if weight is None:
            missing.append(name)
        elif tuple(weight.shape) != shape or not weight.is_floating_point():
            errors.append(f"{name} is of shape {list(weight.shape)} and {weight.dtype}, not {list(shape)} and float")
        else:
            self._store(weight)


class _Linear(torch.autograd.Function):
    """A linear layer that keeps nothing for the backward pass: it computes its frozen weight once more there."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(inputs.dtype)
        return linear(inputs, layer.weight_as(inputs.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.weight_as(gradient.dtype), None


def _functional() -> Any:
    """The functions of bitsandbytes."""
    silence("bitsandbytes")
    import bitsandbytes.functional

    return bitsandbytes.functional
