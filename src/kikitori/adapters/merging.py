"""Merges adapters into the weights of their layers: the arithmetic, for trained adapters and for those of files."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# Names of an adapter's tensors, as in the files of peft.
A, B, E, MAGNITUDE = "lora_A", "lora_B", "lora_E", "lora_magnitude_vector"
# The tensors of one layer: A (rank, inputs), B (outputs, rank); of AdaLoRA E (rank, 1), of DoRA the norms (outputs,).
Tensors = Mapping[str, Tensor]


@torch.no_grad()
def merge_into(layer: nn.Linear, tensors: Tensors, scale: float) -> None:
    """Changes the weight of a layer, so that it computes what layer and adapter compute together."""
    layer.weight.copy_(merged_weight(layer.weight, tensors, scale))


def merged_weight(weight: Tensor, tensors: Tensors, scale: float) -> Tensor:
    """Returns the weight (outputs, inputs) of a layer with its adapter."""
    a = tensors[A] * tensors[E] if E in tensors else tensors[A]
    merged = weight + (tensors[B] @ a) * scale
    if MAGNITUDE in tensors:
        norms = torch.linalg.norm(merged, dim=1)
        merged = (tensors[MAGNITUDE] / norms)[:, None] * merged
    return merged
