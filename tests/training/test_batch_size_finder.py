from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from kikitori.model.whisper import Whisper
from kikitori.runtime.errors import OutOfMemory, is_out_of_memory
from kikitori.training import batch_size_finder
from kikitori.training.batch_size_finder import find_micro_batch_sizes, largest_that_fits, make_memory_probe


@pytest.mark.parametrize(("room", "found"), [(100, 13), (13, 13), (12, 7), (6, 4), (3, 2), (1, 1)])
def test_the_largest_share_of_a_step_that_fits_is_found(room: int, found: int) -> None:
    assert largest_that_fits(13, lambda clips: clips <= room, 3000) == found


def test_a_model_too_large_for_one_clip_is_reported() -> None:
    with pytest.raises(OutOfMemory, match=r"one clip in a window of 30 s does not fit into the GPU's memory; use"):
        largest_that_fits(4, lambda clips: False, 3000)


def test_a_number_applies_to_every_window_and_a_cpu_has_its_own_sizes(micro: Whisper) -> None:
    trainer = pl.Trainer(accelerator="cpu", logger=False)
    data: Any = SimpleNamespace(micro_batch_size=3, window_frames=lambda: {600, 3000})
    assert find_micro_batch_sizes(trainer, micro, data) == {600: 3, 3000: 3}
    for batch in (None, "auto"):
        data.micro_batch_size = batch
        assert find_micro_batch_sizes(trainer, micro, data) == {600: 20, 3000: 4}


def test_a_memory_probe_leaves_no_gradients(micro: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(model: Any, features: torch.Tensor) -> torch.Tensor:
        if len(features) > 2:
            raise torch.OutOfMemoryError("too much")
        return fitting_encode(model, features)

    fitting_encode = batch_size_finder.encode
    monkeypatch.setattr(batch_size_finder, "encode", encode)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    trainer = pl.Trainer(accelerator="cpu", logger=False)
    fits = make_memory_probe(micro, trainer, 60, 9, 4)
    assert [fits(clips) for clips in (4, 3, 2, 1)] == [False, False, True, True]
    assert all(p.grad is None for p in micro.model.parameters())


def gpu(monkeypatch: pytest.MonkeyPatch, free: list[float], cache: Path) -> Any:
    """A Trainer that claims to use a GPU, whose free share of memory is read from `free`."""
    properties = SimpleNamespace(name="a GPU", total_memory=16 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (round(free[0] * 2**34), 2**34))
    monkeypatch.setenv("KIKITORI_CACHE", str(cache))
    device = SimpleNamespace(type="cuda")
    strategy = SimpleNamespace(root_device=device, setup_environment=lambda: None)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *where: self)
    return SimpleNamespace(strategy=strategy, world_size=1, precision="32-true")


def test_a_search_draws_no_random_numbers_and_is_repeated_if_the_gpu_has_other_memory_free(
    micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[int] = []

    def probe(*arguments: Any) -> Any:
        def fits(clips: int) -> bool:
            torch.rand(3)
            np.random.rand()
            searched.append(clips)
            return clips <= 3

        return fits

    monkeypatch.setattr(batch_size_finder, "make_memory_probe", probe)
    data: Any = SimpleNamespace(micro_batch_size="auto", window_frames=lambda: {100}, global_batch_size=4)
    data.most_train_tokens = 9
    free = [0.97]
    trainer = gpu(monkeypatch, free, tmp_path)
    torch.manual_seed(0)
    np.random.seed(0)
    expected = (torch.rand(()), np.random.rand())
    for share, tried in ((0.97, [4, 2]), (0.95, []), (0.5, [4, 2]), (0.97, [])):
        torch.manual_seed(0)
        np.random.seed(0)
        free[0] = share
        assert find_micro_batch_sizes(trainer, micro, data) == {100: 2}
        assert searched == tried
        searched.clear()
        assert (torch.rand(()), np.random.rand()) == expected


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_every_way_to_say_that_memory_is_full_is_recognised(error: Exception, full: bool) -> None:
    assert is_out_of_memory(error) == full


def test_an_average_of_the_weights_takes_memory_of_its_own(
    micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a size that was found without one does not count for it."""
    asked: list[bool] = []

    def probe(whisper: Any, trainer: Any, frames: int, tokens: int, share: int, averaged: bool) -> Any:
        asked.append(averaged)
        return lambda clips: True

    monkeypatch.setattr(batch_size_finder, "make_memory_probe", probe)
    data: Any = SimpleNamespace(micro_batch_size="auto", window_frames=lambda: {100}, global_batch_size=4)
    data.most_train_tokens = 9
    run = gpu(monkeypatch, [0.5], tmp_path)
    for averaged in (False, True, True):
        find_micro_batch_sizes(run, micro, data, averaged)
    assert asked == [False, True]
