"""One seed, one model: with several threads, and whatever random numbers were drawn before training."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import OPTIM

from kikitori.data.collate import collate
from kikitori.model.loading import build_whisper
from kikitori.runtime.rng import random_state_kept, separate_random_state
from kikitori.training.lightning_module import WhisperModule
from kikitori.training.trainer import build_trainer, resolve_trainer_settings

# As conf/trainer/auto.yaml has them.
DEFAULTS = {"_target_": "pytorch_lightning.Trainer", "accelerator": "auto", "devices": 1, "precision": "auto"}


@pytest.fixture
def four_threads() -> Any:
    """More than most runners of tests have cores, so that the order in which they finish varies."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(False)


def train(folder: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """The weights after some steps of a batch whose gradients are added up by several threads."""
    torch.manual_seed(0)
    whisper = build_whisper(d_model=64, encoder_layers=1, decoder_layers=1, dropout=0.1, apply_spec_augment=True)
    np.random.seed(0)  # SpecAugment's
    rows: list[Any] = [
        {
            "input_features": torch.randn(80, 300),
            "tokens": whisper.processor.encode("あのイーハトーヴォのすきとおった風"),
            "clip": str(i),
            "text": "",
            "seconds": 2.0,
        }
        for i in range(16)
    ]
    resolved, _ = resolve_trainer_settings(DEFAULTS | settings, gpus=0)
    run = build_trainer(resolved, folder, [], [], max_steps=6)
    batches: Any = torch.utils.data.DataLoader(rows * 6, batch_size=16, collate_fn=collate)
    run.fit(WhisperModule(whisper, OPTIM), batches)
    return {name: value.clone() for name, value in whisper.model.state_dict().items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("four_threads")
def test_runs_with_several_threads_and_one_seed_have_equal_weights(tmp_path: Path) -> None:
    first, *others = [train(tmp_path) for _ in range(3)]
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("given", "gpus", "deterministic"), [({}, 0, True), ({}, 1, False), ({"accelerator": "cpu"}, 1, True)]
)
def test_a_cpu_is_deterministic_unless_it_is_set_otherwise_and_a_gpu_only_if_it_is(
    given: dict[str, Any], gpus: int, deterministic: bool
) -> None:
    def resolved(**more: Any) -> Any:
        return resolve_trainer_settings(DEFAULTS | given | more, gpus)[0]["deterministic"]

    assert resolved() is resolved(deterministic="auto") is deterministic
    assert resolved(deterministic=True) is True
    assert resolved(deterministic=False) is False


def drawn() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def test_a_block_whose_random_state_is_kept_draws_none_of_the_runs_numbers() -> None:
    seed_all(3)
    expected = drawn()
    seed_all(3)
    with random_state_kept():
        drawn()
    assert drawn() == expected


def test_each_process_draws_numbers_of_its_own_and_the_first_as_a_run_of_one_process() -> None:
    def of_rank(rank: int, seed: int) -> tuple[float, float, float]:
        seed_all(seed)
        separate_random_state(rank)
        return drawn()

    seed_all(5)
    assert drawn() == of_rank(0, 5)
    every = [of_rank(rank, seed) for seed in (5, 6, 7) for rank in range(4)]
    for kind in range(3):
        assert len({numbers[kind] for numbers in every}) == len(every)
    assert of_rank(2, 6) == of_rank(2, 6)
