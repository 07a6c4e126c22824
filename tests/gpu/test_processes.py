"""Two processes on two cards, or on the only one, train what one trains; so does a cached encoder. CUDA contexts."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_models import distance
from gpu_scripts import ranks, run_together, train
from recordings import write_common_voice

CARDS = torch.cuda.device_count()
MODEL = {"d_model": 128, "encoder_layers": 2, "decoder_layers": 2, "attention_heads": 2, "window_s": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Callable[..., torch.Tensor]]:
    """The scores of some runs, and a function that reads the weights of one."""
    folder = tmp_path_factory.mktemp("processes")
    release = str(write_common_voice(folder / "ja", {"train": 10, "dev": 5, "test": 3}))
    common = {"release": release, "model": MODEL, "batch": 4}
    spread = {"devices": 2} if CARDS > 1 else {"num_nodes": 2}
    bf16 = {"max_steps": 6, "precision": "bf16-mixed"}
    runs = {
        "one": {**common, "trainer": {"max_steps": 6}},
        "two": {**common, "trainer": {"max_steps": 6, **spread}, "world_size": 2},
        "computed": {**common, "trainer": bf16, "freeze": "encoder"},
        "cached": {**common, "trainer": bf16, "freeze": "encoder", "cached": True},
    }
    measured = train(folder, runs, CARDS)
    return measured, lambda run, rank=0: torch.load(folder / run / f"{rank}-0.pt")


def test_two_processes_train_what_one_trains(trained: Any, record_property: Any) -> None:
    measured, weights = trained
    apart = distance(weights("two"), weights("one"))
    record_property("cards", min(CARDS, 2))
    record_property("relative difference of the weights after 6 steps", f"{apart:.1e}")
    assert torch.equal(weights("two", 0), weights("two", 1))
    assert apart < 1e-4
    assert measured["two"]["scores"] == pytest.approx(measured["one"]["scores"], rel=1e-3)


def test_a_cached_encoder_trains_what_a_computed_one_trains(trained: Any, record_property: Any) -> None:
    _, weights = trained
    apart = distance(weights("cached"), weights("computed"))
    record_property("relative difference of the weights after 6 steps in bf16", f"{apart:.1e}")
    assert apart < 2e-3


def test_each_process_opens_a_context_on_its_own_card_only(tmp_path: Path, record_property: Any) -> None:
    """On a single card it shows no more than that none is opened before a process has chosen its card."""
    count = min(CARDS, 2)
    settings = [
        *(
            "train",
            "experiment=demo",
            "guard.clips=0",
            "trainer=ddp",
            "trainer.accelerator=gpu",
            f"trainer.devices={count}",
        ),
        *("model.d_model=32", "model.encoder_layers=1", "model.decoder_layers=1", "trainer.max_steps=4"),
        *("data.limit={train: 12, validation: 4, test: 5}", "validation.every_steps=2", "generation.max_new_tokens=12"),
        *("score.train_clips=3", "logger=none", "hydra.run.dir=run"),
    ]
    line = [sys.executable, str(Path(__file__).with_name("context_script.py")), *settings]
    own = ranks(count, CARDS) if count > 1 else [{}]
    run_together([(line, {**own[rank], "CONTEXTS": f"{rank}.json"}) for rank in range(count)], tmp_path)
    for rank in range(count):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        record_property(f"process {rank}", f"context before it chose: {seen['before']}, at the end on {seen['cards']}")
        assert seen == {"before": False, "cards": [rank]}
