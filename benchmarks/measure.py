"""Measurements for all contenders: time of steps, memory, and the machine's matrix multiplication rate."""

import ctypes
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from flops import training
from torch import Tensor, nn
from transformers import WhisperConfig

STATUS = Path("/proc/self/status")
DTYPES = {"32": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Part(NamedTuple):
    """Clips that pass through the model together: their number, log-Mel frames of their window, padded label tokens."""

    clips: int
    frames: int
    tokens: int


class Meter:
    """Times the training steps after the warm-up, loading included. Call `end_of_step` after each step.

    Memory is that of the GPU, or without one the RSS of the process, without the loader's workers.
    """

    def __init__(self, warmup_steps: int, all_steps: int) -> None:
        self.warmup_steps = warmup_steps
        self.all_steps = all_steps
        self.step = 0
        self.parts: list[list[Part]] = []
        self.seconds = 0.0
        self.held_mb: float | None = None
        self.peak_mb: float | None = None

    def end_of_step(self, parts: list[Part]) -> None:
        """Counts a step. parts: the clips that passed through the model in it."""
        self.step += 1
        if self.step > self.warmup_steps:
            self.parts.append(parts)
        if self.step == self.warmup_steps:
            _wait()
            self.held_mb = start_of_peak()
            self.seconds = -time.perf_counter()
        elif self.step == self.all_steps:
            _wait()
            self.seconds += time.perf_counter()
            self.peak_mb = peak_mb()

    def measured(self, config: WhisperConfig, precision: str) -> dict[str, Any]:
        """Returns the figures under `train` in the results.

        Growth is the peak inside a step less the memory between two steps, so it excludes weights, optimizer state and
        libraries.
        """
        clips = sum(part.clips for parts in self.parts for part in parts)
        work = sum(part.clips * training(config, part.frames, part.tokens) for parts in self.parts for part in parts)
        batch = clips / len(self.parts)
        growth = None if self.peak_mb is None or self.held_mb is None else (self.peak_mb - self.held_mb) / batch
        rate = matrix_rate(DTYPES[precision])
        return {
            "clips": clips,
            "seconds": self.seconds,
            "clips_per_s": clips / self.seconds,
            "peak_mb": self.peak_mb,
            "growth_mb_per_clip": growth,
            "flops": work,
            "flops_per_s": work / self.seconds,
            "matrix_flops_per_s": rate,
            "utilisation": work / self.seconds / rate,
            "parts": self.parts,
        }


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def start_of_peak() -> float | None:
    """Resets the peak. Returns the memory in use in MB, or None if the system does not report it."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 1e6
    if not STATUS.exists():
        return None
    # First return freed memory to the system, or it would count as in use.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status_mb("VmRSS")


def peak_mb() -> float | None:
    """Returns the peak memory since `start_of_peak` in MB, or None if the system does not report it."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return _status_mb("VmHWM") if STATUS.exists() else None


def _status_mb(field: str) -> float:
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[field].split()[0]) * 1024 / 1e6


def activation_mb(
    loss: Callable[[int, int, int], Tensor], model: nn.Module, parts: list[list[Part]], precision: str
) -> float:
    """Returns the mean MB per clip that the forward pass keeps for the backward pass, over the trained parts.

    loss: computes the loss of (clips, frames, tokens) synthetic clips. The difference between two clips and one
    excludes what is kept once, such as the weights in half precision. Counted per tensor, so it does not depend on an
    allocator.
    """
    clips: dict[tuple[int, int], int] = {}
    for part in (part for step in parts for part in step):
        clips[part.frames, part.tokens] = clips.get((part.frames, part.tokens), 0) + part.clips
    total = 0.0
    for shape, count in clips.items():
        one, two = (_kept_bytes(partial(loss, n, *shape), model, precision) for n in (1, 2))
        total += count * (two - one)
    return total / sum(clips.values()) / 1e6


def _kept_bytes(forward: Callable[[], Tensor], model: nn.Module, precision: str) -> int:
    """Returns the bytes of all storages that autograd saves in a forward pass, without the model's weights."""
    storages: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(precision):
        kept = forward()
    del kept
    return sum(storages.values())


def autocast(precision: str) -> AbstractContextManager[Any]:
    """Returns the autocast context of a Trainer's precision."""
    return torch.autocast(DEVICE.type, DTYPES[precision], enabled=precision != "32")


def matrix_rate(dtype: torch.dtype) -> float:
    """Measures the FLOP/s of a large product of square matrices: the rate this machine can reach in this precision.

    The best of several tries, because other load on the machine can only slow it down.
    """
    size = 8192 if DEVICE.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=DEVICE).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        _wait()
        start = time.perf_counter()
        a @ b
        _wait()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
