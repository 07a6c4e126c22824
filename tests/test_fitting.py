from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from kikitori import fitting
from kikitori.errors import TrainingError
from kikitori.fitting import at_once, most, step_that_may_not_fit
from kikitori.module import WhisperModule
from kikitori.whisper import Whisper


@pytest.mark.parametrize(("room", "found"), [(100, 13), (13, 13), (12, 7), (6, 4), (3, 2), (1, 1)])
def test_the_largest_share_of_a_step_that_fits_is_found(room: int, found: int) -> None:
    assert most(13, lambda clips: clips <= room, 3000) == found


def test_a_model_too_large_for_one_clip_is_told() -> None:
    with pytest.raises(TrainingError, match=r"one clip in a window of 30 s does not fit the GPU's memory; take"):
        most(4, lambda clips: False, 3000)


def test_a_number_holds_for_every_window_and_a_cpu_takes_what_suits_it(micro: Whisper) -> None:
    trainer, module = pl.Trainer(accelerator="cpu", logger=False), WhisperModule(micro)
    data: Any = SimpleNamespace(batch=3, window_frames=lambda: {600, 3000})
    assert at_once(trainer, module, data) == {600: 3, 3000: 3}
    for batch in (None, "auto"):
        data.batch = batch
        assert at_once(trainer, module, data) == {600: 20, 3000: 4}


def test_a_tried_step_leaves_nothing_behind(micro: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(model: Any, features: torch.Tensor) -> torch.Tensor:
        if len(features) > 2:
            raise torch.OutOfMemoryError("too much")
        return fitting_encode(model, features)

    fitting_encode = fitting.encode
    monkeypatch.setattr(fitting, "encode", encode)
    trainer, module = pl.Trainer(accelerator="cpu", logger=False), WhisperModule(micro)
    fits = step_that_may_not_fit(module, trainer, 60, 9)
    assert [fits(clips) for clips in (4, 3, 2, 1)] == [False, False, True, True]
    assert all(p.grad is None for p in module.parameters())
