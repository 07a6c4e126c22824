"""The real command with augmentation: the same weights for any number of workers, and after an interruption."""

import json
from pathlib import Path

import pytest
import torch
from commands import SMALL, interrupt, kikitori, weights
from recordings import write_clip

pytestmark = pytest.mark.long

STEPS = [
    *SMALL,
    "logger=none",
    "trainer.max_steps=12",
    "validation.every_steps=4",
    "callbacks.checkpoint.monitor=val/loss",
]


def test_workers_and_an_interruption_change_no_weight(tmp_path: Path) -> None:
    write_clip(tmp_path / "noise" / "hum.wav", 120.0, 1.0)
    noise = "augment.noise_folder=noise"
    words = ["train", *STEPS, "augment=heavy", noise]
    for workers in (0, 2):
        done = kikitori(*words, f"data.num_workers={workers}", f"hydra.run.dir=w{workers}", cache=tmp_path)
        assert done.returncode == 0, done.stderr
    interrupt(*words, "hydra.run.dir=cut", cache=tmp_path, after=tmp_path / "cut/checkpoints/step-4.ckpt")
    assert json.loads((tmp_path / "cut/results.json").read_text(encoding="utf-8"))["status"] != "completed"
    refused = kikitori("train", "resume=cut", cache=tmp_path)
    assert "augment.noise_folder: must be a folder of the run that is resumed" in refused.stderr
    resumed = kikitori("train", "resume=cut", noise, cache=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    plain = kikitori("train", *STEPS, "hydra.run.dir=plain", cache=tmp_path)
    assert plain.returncode == 0, plain.stderr
    first, second, cut, without = (weights(tmp_path / name) for name in ("w0", "w2", "cut", "plain"))
    assert all(torch.equal(first[key], second[key]) and torch.equal(first[key], cut[key]) for key in first)
    assert not all(torch.equal(first[key], without[key]) for key in first)
    facts = json.loads((tmp_path / "w0/results.json").read_text(encoding="utf-8"))["data"]["augmentation"]
    assert facts["noise_folder"]["recordings"] == 1
    assert "augmentation of the clips (speed 50.0 %" in (tmp_path / "w0/model/README.md").read_text(encoding="utf-8")
