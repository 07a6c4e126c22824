"""Two processes on two cards, or on the only one, train what one process trains; and a frozen encoder's cache."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_models import distance
from gpu_scripts import ranks, run_together, train
from recordings import write_common_voice

MODEL = {"d_model": 128, "encoder_layers": 2, "decoder_layers": 2, "attention_heads": 2, "window_s": 1}
CARDS = torch.cuda.device_count()


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_common_voice(tmp_path_factory.mktemp("tones") / "ja", {"train": 10, "dev": 5, "test": 3}))


def test_two_processes_train_what_one_trains(release: str, tmp_path: Path, record_property: Any) -> None:
    settings = {"release": release, "model": MODEL, "batch": 4}
    one = train(tmp_path / "one", **settings, trainer={"max_steps": 6})
    spread = {"devices": 2} if CARDS > 1 else {"num_nodes": 2}
    two = train(tmp_path / "two", ranks(2, CARDS), **settings, trainer={"max_steps": 6, **spread})
    alone, first, second = (torch.load(tmp_path / name) for name in ("one/0.pt", "two/0.pt", "two/1.pt"))
    record_property("cards", min(CARDS, 2))
    record_property("relative difference of the weights after 6 steps", f"{distance(first, alone):.1e}")
    assert torch.equal(first, second)
    assert distance(first, alone) < 1e-4
    assert two["scores"] == pytest.approx(one["scores"], rel=1e-3)


def test_a_cached_encoder_trains_what_a_computed_one_trains(release: str, tmp_path: Path, record_property: Any) -> None:
    settings = {"release": release, "model": MODEL, "batch": 4, "freeze": "encoder"}
    for cached in (False, True):
        train(tmp_path / str(cached), **settings, cached=cached, trainer={"max_steps": 6, "precision": "bf16-mixed"})
    computed, cached = (torch.load(tmp_path / name / "0.pt") for name in ("False", "True"))
    record_property("relative difference of the weights after 6 steps", f"{distance(cached, computed):.1e}")
    assert distance(cached, computed) < 1e-3


def test_each_process_opens_a_context_on_its_own_card_only(tmp_path: Path, record_property: Any) -> None:
    """On a single card it shows no more than that none is opened before a process has chosen its card."""
    count = min(CARDS, 2)
    settings = [
        *("train", "experiment=demo", "trainer=ddp", "trainer.accelerator=gpu", f"trainer.devices={count}"),
        *("model.d_model=32", "model.encoder_layers=1", "model.decoder_layers=1", "trainer.max_steps=4"),
        *("data.limit={train: 12, validation: 4, test: 5}", "validation.every_steps=2", "generation.max_new_tokens=12"),
        *("score.train_clips=3", "logger=none", "hydra.run.dir=run"),
    ]
    script = Path(__file__).with_name("context_script.py")
    environments = ranks(count, CARDS) if count > 1 else [{}]
    line = [sys.executable, str(script), *settings]
    run_together(
        [(line, {**variables, "CONTEXTS": f"{rank}.json"}) for rank, variables in enumerate(environments)], tmp_path
    )
    for rank in range(count):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        record_property(f"process {rank}", f"context before it chose: {seen['before']}, in the end on {seen['cards']}")
        assert not seen["before"]
        assert seen["cards"] == [rank]
