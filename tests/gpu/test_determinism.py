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
    seconds, weights = [], []
    for name in ("default", "deterministic"):
        settings = {"max_steps": 20, "precision": "bf16-mixed", "deterministic": name == "deterministic"}
        run = {"release": release, "model": BASE, "batch": 16, "trainer": settings, "times": 2}
        # One after the other, because both are timed.
        seconds.append(train(tmp_path, {name: run})[name]["seconds_per_step"])
        weights.append([torch.load(tmp_path / name / f"0-{number}.pt") for number in range(2)])
    (first, second), (same, again) = weights
    record_property("otherwise: relative difference of the weights after 20 steps", f"{distance(first, second):.1e}")
    record_property("seconds per step of 16 clips of 30 s", f"{seconds[1]:.3f}, otherwise {seconds[0]:.3f}")
    assert torch.equal(same, again)
