"""`kikitori evaluate` finds the model of a checkpoint."""

from pathlib import Path

import pytest
import torch

from kikitori.model.whisper import Whisper
from kikitori.pipelines.evaluate import load_checkpoint
from kikitori.runtime.errors import ConfigError, ModelError


def load(checkpoint: Path) -> Whisper:
    return load_checkpoint({"checkpoint": str(checkpoint), "model": {"language": "ja", "task": "transcribe"}})


def test_the_model_of_a_run_folder_is_loaded(micro: Whisper, tmp_path: Path) -> None:
    micro.save(tmp_path / "model")
    loaded = load(tmp_path).model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in micro.model.state_dict().items())


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ModelError, match=f"checkpoint={tmp_path} holds no model: "):
        load(tmp_path)


def test_a_checkpoint_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not exist; give a run folder, a model folder, or a \.ckpt file"):
        load(tmp_path / "nonesuch")
