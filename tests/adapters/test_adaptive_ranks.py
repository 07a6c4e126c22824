"""AdaLoRA prunes ranks as the training goes on, and a resumed training prunes as an uninterrupted one."""

import copy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from training_runs import OPTIM, trainer, training

from kikitori.adapters import layers
from kikitori.adapters.adaptive_ranks import AVERAGES, AdaptiveRanks, orthogonality_penalty
from kikitori.adapters.layers import adapter_tensors
from kikitori.adapters.settings import AdaLora
from kikitori.config.validation import check_config
from kikitori.model.loading import rebuild_whisper
from kikitori.model.whisper import Whisper
from kikitori.runtime.errors import ConfigError
from kikitori.training.checkpoints import read_checkpoint
from kikitori.training.lightning_module import WhisperModule

pytestmark = [
    pytest.mark.skipif(not layers.is_available(), reason=f"an adapter {layers.EXTRA}"),
    pytest.mark.filterwarnings("ignore"),
]
STEPS = 10
ADAPTER = AdaLora(2, 8, initial_rank=4, targets=["q_proj", "fc1"], dropout=0.1, every_steps=1)


class Ranks(pl.Callback):
    """The ranks that are left before each step, of all layers together."""

    def __init__(self) -> None:
        self.left: list[int] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.left.append(ranks(pl_module.whisper))


def ranks(whisper: Whisper) -> int:
    return sum(int((of["lora_E"] != 0).sum()) for of in adapter_tensors(whisper.model).values())


def fit(whisper: Whisper, folder: Path, *callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    torch.manual_seed(3)
    checkpoints = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    steps: dict[str, Any] = {"max_steps": STEPS, "enable_checkpointing": True, "callbacks": [checkpoints, *callbacks]}
    runner = trainer(folder, **steps)
    # The same clip in each step, since this loader does not resume.
    runner.fit(WhisperModule(whisper, OPTIM), training(whisper, 1, STEPS, clips=1), **settings)
    return runner


@pytest.fixture
def adapted(micro: Whisper) -> Whisper:
    micro.add_adapter(ADAPTER)
    return micro


def test_ranks_fall_from_the_initial_one_to_the_mean_that_is_asked_for(adapted: Whisper, tmp_path: Path) -> None:
    seen, layers_adapted = Ranks(), len(adapted.arguments["adapter"]["modules"])
    fit(adapted, tmp_path, seen)
    # E begins as 0, and the first step has a learning rate of 0. Then six prunings, and the final ranks.
    assert seen.left[:2] == [0, 0]
    assert 2 * layers_adapted < seen.left[2] < 4 * layers_adapted
    assert seen.left[7:] == [2 * layers_adapted] * 3
    assert ranks(adapted) == 2 * layers_adapted
    assert sorted(seen.left[2:], reverse=True) == seen.left[2:]


@pytest.mark.parametrize("step", [4, 8])
def test_a_resumed_training_prunes_as_an_uninterrupted_one(adapted: Whisper, tmp_path: Path, step: int) -> None:
    """After 4 steps the moving averages count, after 8 the final pattern. Dropout draws anew in each step."""

    class Seeded(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            torch.manual_seed(trainer.global_step)

    start = copy.deepcopy(adapted.model.state_dict())
    fit(adapted, tmp_path / "whole", Seeded())
    again = rebuild_whisper(adapted.recipe)
    again.model.load_state_dict(start)
    checkpoint = tmp_path / "whole" / f"step={step}.ckpt"
    fit(again, tmp_path / "resumed", Seeded(), ckpt_path=checkpoint, weights_only=True)
    for name, value in adapted.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    # After two more steps.
    kept = [read_checkpoint(tmp_path / part / f"step={step + 2}.ckpt") for part in ("whole", "resumed")]
    whole, resumed = (checkpoint["callbacks"]["AdaptiveRanks"] for checkpoint in kept)
    assert whole["pattern"] == resumed["pattern"]
    for average in AVERAGES:
        assert bool(whole[average]) == (step == 4)
        assert all(torch.equal(resumed[average][name], value) for name, value in whole[average].items())


def test_a_step_without_gradients_is_not_counted(adapted: Whisper, tmp_path: Path) -> None:
    """GradScaler skips steps whose gradients are not finite; they say nothing of a rank's importance."""

    class Skipping(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            callback = next(c for c in trainer.callbacks if isinstance(c, AdaptiveRanks))
            callback._taken = False

    seen = Ranks()
    fit(adapted, tmp_path, Skipping(), seen)
    assert seen.left == [0, 0, *[4 * len(adapted.arguments["adapter"]["modules"])] * (STEPS - 2)]


def test_the_penalty_is_that_of_peft() -> None:
    matrices = [torch.nn.Parameter(torch.randn(2, 8)), torch.nn.Parameter(torch.randn(8, 2))]
    a, b = (matrix.detach() for matrix in matrices)
    distances = [torch.norm(a @ a.T - torch.eye(2)), torch.norm(b.T @ b - torch.eye(2))]
    torch.testing.assert_close(orthogonality_penalty(matrices).detach(), sum(distances) / 2)


def test_the_penalty_changes_the_gradients_and_not_the_loss(micro: Whisper, tmp_path: Path) -> None:
    weights, losses = [], []
    start = copy.deepcopy(micro.model.state_dict())
    for orthogonality in (0.0, 0.5):
        whisper = rebuild_whisper(micro.recipe)
        whisper.model.load_state_dict(start)
        torch.manual_seed(0)
        whisper.add_adapter(AdaLora(2, targets=["fc1"], orthogonality=orthogonality))

        class First(pl.Callback):
            def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
                losses.append(float(outputs["loss"]))

        fit(whisper, tmp_path / str(orthogonality), First())
        weights.append(next(iter(adapter_tensors(whisper.model).values()))["lora_A"])
    # The first step has a learning rate of 0.
    assert losses[:2] == losses[STEPS : STEPS + 2]
    assert not torch.equal(*weights)


def test_a_training_of_one_step_is_refused(adapted: Whisper, tmp_path: Path) -> None:
    runner = trainer(tmp_path, max_steps=1)
    with pytest.raises(ConfigError, match="it needs 2 steps at least, not 1"):
        runner.fit(WhisperModule(adapted, OPTIM), training(adapted, 2, 1))


def test_an_average_of_the_weights_is_refused(adapted: Whisper, tmp_path: Path) -> None:
    module = WhisperModule(adapted, OPTIM, ema_decay=0.9)
    with pytest.raises(ConfigError, match=r"ema_decay=0\.9: the average would keep what adapter=adalora has pruned"):
        trainer(tmp_path, max_steps=1).fit(module, training(adapted, 1, 1, clips=1))
    node = {"_target_": "kikitori.AdaLora", "targets": ["q_proj"], "rank": 4}
    with pytest.raises(ConfigError, match=r"ema\.decay: is 0\.9, but the average would keep"):
        check_config({"callbacks": {}, "adapter": node, "ema": {"decay": 0.9}})
