"""AdamW of bitsandbytes, whose moments are stored in 8 bits."""

from typing import Any

import torch
from torch import Tensor

from kikitori.runtime.console import silence
from kikitori.runtime.errors import ConfigError

# Numbers that share a scale, and the values that 8 bits stand for.
BLOCK, VALUES = 256, 256


def import_bitsandbytes() -> Any:
    """The package. Raises ConfigError that names the extra."""
    silence("bitsandbytes")  # which warns of kernels for another purpose
    try:
        import bitsandbytes
    except ImportError as error:
        raise ConfigError(
            "optim=adamw8bit needs the package bitsandbytes: pip install 'kikitori[bitsandbytes]'"
        ) from error
    return bitsandbytes


def make_adamw8bit(groups: list[dict[str, Any]], **settings: Any) -> Any:
    """Builds the optimizer; a state that it restores is checked, since its kernels read whatever lies there."""

    unchecked: Any = import_bitsandbytes().optim.AdamW8bit

    class AdamW8bit(unchecked):
        def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
            super().load_state_dict(state_dict, move_to_device)
            for parameter, state in self.state.items():
                check_state(parameter, state)

    return AdamW8bit(groups, **settings)


def check_state(parameter: Tensor, state: dict[str, Any]) -> None:
    """Raises ValueError unless the moments of a weight, and what 8 bits of them stand for, fit its size."""
    dtype = state["state1"].dtype
    expected = dict.fromkeys(("state1", "state2"), (parameter.shape, dtype))
    if dtype == torch.uint8:
        blocks = -(-parameter.numel() // BLOCK)
        expected |= {name: (torch.Size([blocks]), torch.float32) for name in ("absmax1", "absmax2")}
        expected |= {name: (torch.Size([VALUES]), torch.float32) for name in ("qmap1", "qmap2")}
    for name, (shape, kind) in expected.items():
        value = state[name]
        if value.shape != shape or value.dtype != kind or not value.is_contiguous():
            raise ValueError(f"{name} is of shape {list(value.shape)} and {value.dtype}, not {list(shape)} and {kind}")
    if dtype not in (torch.uint8, torch.float32):
        raise ValueError(f"the moments are {dtype}")
