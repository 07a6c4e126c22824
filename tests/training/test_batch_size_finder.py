from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from kikitori.model.whisper import Whisper
from kikitori.runtime.errors import OutOfMemory
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
    trainer = pl.Trainer(accelerator="cpu", logger=False)
    fits = make_memory_probe(micro, trainer, 60, 9)
    assert [fits(clips) for clips in (4, 3, 2, 1)] == [False, False, True, True]
    assert all(p.grad is None for p in micro.model.parameters())
