"""Tensors on a GPU without one: torch computes shapes and devices only, and notes where the CPU waits for the GPU."""

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

from kikitori.model.features import _hann, mel_filters
from kikitori.model.loading import build_whisper
from kikitori.model.whisper import Whisper

GPU = torch.device("cuda", 0)
# Operations with a result whose shape depends on values, or a result that is no tensor.
NUMBERS = {"item", "_local_scalar_dense"}
READS = NUMBERS | {"nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_consecutive"}


class Waits(TorchDispatchMode):
    """Notes the functions of kikitori that wait for the GPU.

    device: "cpu" notes those that read a value in a computation on the CPU, where a GPU would be waited for.
    tokens: the values that are read from a fake GPU, one after the other, because its tensors have none; then 0.
    """

    def __init__(self, device: str = "cuda", tokens: Iterable[int] = ()) -> None:
        super().__init__()
        self.device = device
        self.functions: set[str] = set()
        self.tokens = iter(tokens)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = function.overloadpacket.__name__, kwargs or {}
        tensors = [value for value in torch.utils._pytree.tree_leaves(args) if isinstance(value, Tensor)]
        on_device = any(tensor.device.type == self.device for tensor in tensors)
        if on_device and (name in READS or _by_mask(name, args)):
            self._note()
        if name in NUMBERS and isinstance(args[0], FakeTensor):
            return next(self.tokens, 0) if on_device else 0
        result = function(*args, **given)
        if _blocking_copy(name, args, given, result):
            self._note()
        return result

    def _note(self) -> None:
        frames = [frame for frame, _ in traceback.walk_stack(None) if "/src/kikitori/" in frame.f_code.co_filename]
        name = frames[0].f_code.co_qualname if frames else "outside kikitori"
        # A lambda or a generator counts as the function that it is in.
        self.functions.add(name.split(".<locals>")[0].split(".")[-1])


def _by_mask(name: str, args: Any) -> bool:
    """Whether a tensor is indexed by a mask, which reads the number of places."""
    indices = args[1] if name in ("index", "index_put", "index_put_") else []
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)


def _blocking_copy(name: str, args: Any, given: Any, result: Any) -> bool:
    if name == "_to_copy":
        return bool(args[0].device.type != result.device.type and not given.get("non_blocking"))
    if name == "copy_":
        non_blocking = given.get("non_blocking") or (len(args) > 2 and args[2])
        return bool(args[0].device.type != args[1].device.type and not non_blocking)
    return False


@contextmanager
def fake_gpu(**config: Any) -> Iterator[Whisper]:
    """A context in which new tensors are fake, with a very small Whisper on the GPU."""
    # Constants that are computed once must not be fake for later tests.
    _hann(), mel_filters(80)
    shapes = ShapeEnv(allow_dynamic_output_shape_ops=True)
    with FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True):
        sizes: dict[str, Any] = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "attention_heads": 2}
        with GPU:
            whisper = build_whisper(**sizes, window_s=1, max_label_tokens=64, **config)
        whisper.configure_generation(max_new_tokens=6, num_beams=1)
        yield whisper
