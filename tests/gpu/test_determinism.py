"""Which runs with one seed are equal to the bit on a GPU, and what that costs."""

from pathlib import Path
from typing import Any

import torch
from gpu_models import distance
from gpu_scripts import train
from recordings import write_common_voice

# Of whisper-base's width and window.
BASE = {"d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "attention_heads": 8, "window_s": 30}


def test_two_deterministic_runs_give_the_same_weights(tmp_path: Path, record_property: Any) -> None:
    release = str(write_common_voice(tmp_path / "ja", {"train": 16, "dev": 2, "test": 2}))
    seconds, weights = {}, {}
    for deterministic in (True, False):
        for number in range(2):
            folder = tmp_path / f"{deterministic}-{number}"
            settings = {"max_steps": 20, "precision": "bf16-mixed", "deterministic": deterministic}
            run = train(folder, release=release, model=BASE, batch=16, trainer=settings)
            seconds[deterministic] = run["seconds_per_step"]
            weights[deterministic, number] = torch.load(folder / "0.pt")
    apart = distance(weights[False, 0], weights[False, 1])
    record_property("without it: relative difference of the weights after 20 steps", f"{apart:.1e}")
    record_property("seconds per step of 16 clips of 30 s", f"{seconds[True]:.3f}, without it {seconds[False]:.3f}")
    assert torch.equal(weights[True, 0], weights[True, 1])
