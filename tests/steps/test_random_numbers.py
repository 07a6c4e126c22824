"""What happens before training does not change the random numbers of training, and so not the model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from kikitori.pipelines.train import train
from kikitori.runtime.paths import CONF
from kikitori.steps.scoring import Scorer

SMALL = [
    *(
        "experiment=demo",
        "guard.clips=0",
        "logger=none",
        "model.d_model=32",
        "model.encoder_layers=1",
        "model.decoder_layers=1",
    ),
    *("model.dropout=0.1", "generation.max_new_tokens=6", "trainer.max_steps=4", "optim.warmup_steps=0"),
    "data.limit={train: 16, validation: 4, test: 4}",
]


def weights(folder: Path, *words: str) -> bytes:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*SMALL, *words])
    train(cfg, folder)
    return (folder / "model/model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_scores_before_training_and_a_cache_that_is_found_do_not_change_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIKITORI_CACHE", str(tmp_path / "cache"))
    decoded = weights(tmp_path / "decoded", "score.train_clips=1")
    score = Scorer.score

    def drawing(self: Scorer, *arguments: Any, **more: Any) -> Any:
        torch.rand(9)
        return score(self, *arguments, **more)

    monkeypatch.setattr(Scorer, "score", drawing)
    assert weights(tmp_path / "found", "score.train_clips=9") == decoded
