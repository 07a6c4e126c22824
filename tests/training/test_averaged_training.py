"""The average of the weights is what is validated, chosen, saved and scored; the weights themselves go on training."""

import copy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from training_runs import OPTIM, examples, loader, trainer, training

import kikitori
from kikitori.data.collate import collate
from kikitori.model.whisper import Whisper
from kikitori.runtime.errors import ConfigError
from kikitori.training.checkpoints import read_checkpoint
from kikitori.training.lightning_module import WhisperModule

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS, DECAY = 6, 0.6
Weights = dict[str, torch.Tensor]


def of(module: pl.LightningModule) -> Weights:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Seen(pl.Callback):
    """The weights before and after each step, and those that are validated."""

    def __init__(self) -> None:
        self.before: list[Weights] = []
        self.after: list[Weights] = []
        self.validated: list[Weights] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.before.append(of(pl_module))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.after.append(of(pl_module))

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: Any, *rest: Any) -> None:
        self.validated.append(of(pl_module))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            folder = Path(trainer.default_root_dir)
            trainer.save_checkpoint(folder / f"weights-{trainer.global_step}.ckpt", weights_only=True)


def fit(whisper: Whisper, folder: Path, ckpt_path: Any = None, steps: int = STEPS, **settings: Any) -> Any:
    """Trains a copy of the model, with a validation after every second step and a checkpoint after each."""
    torch.manual_seed(0)
    seen, settings = Seen(), {"ema_decay": DECAY, **settings}
    keep: dict[str, Any] = {"save_top_k": -1, "auto_insert_metric_name": False}
    every_step = ModelCheckpoint(folder, "train-{step}", every_n_train_steps=1, **keep)
    callbacks = [
        seen,
        ModelCheckpoint(folder, "step-{step}", "val/loss", **keep),
        every_step,
    ]
    run = trainer(
        folder, max_steps=steps, val_check_interval=2, check_val_every_n_epoch=None, enable_checkpointing=True,
        callbacks=callbacks, num_sanity_val_steps=0,
    )  # fmt: skip
    module = WhisperModule(copy.deepcopy(whisper), OPTIM, **settings)
    rows: Any = examples(whisper) * steps
    batches = torch.utils.data.DataLoader(rows, batch_size=4, collate_fn=collate)
    run.fit(module, batches, loader(whisper, 4), ckpt_path=ckpt_path, weights_only=True)
    return run, module, seen


def average_of(seen: Seen, steps: int) -> Weights:
    """By the formula, from the weights after each step."""
    average = seen.before[0]
    for n, weights in enumerate(seen.after[:steps]):
        decay = min(DECAY, (1 + n) / (10 + n))
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in weights}
    return average


def test_the_average_is_validated_and_saved_and_the_weights_go_on_training(micro: Whisper, tmp_path: Path) -> None:
    run, module, seen = fit(micro, tmp_path)
    _, _, plain = fit(micro, tmp_path / "plain", ema_decay=None)
    # An average changes nothing in the training itself.
    assert all(map(same, seen.after, plain.after))
    assert all(map(same, seen.after[:-1], seen.before[1:]))
    for i, step in enumerate((2, 4, 6)):
        for name, value in average_of(seen, step).items():
            torch.testing.assert_close(seen.validated[i][name], value)
        for kind in ("step", "weights", "train"):
            assert same(read_checkpoint(tmp_path / f"{kind}-{step}.ckpt")["state_dict"], seen.validated[i])
    assert not same(seen.validated[-1], seen.after[-1])
    # What is scored and saved afterwards.
    assert same(of(module), seen.validated[-1])
    loss = float(run.callback_metrics["val/loss"])
    assert run.validate(module, loader(micro, 4), verbose=False)[0]["val/loss"] == pytest.approx(loss)
    assert same(of(module), seen.validated[-1])


def test_a_loaded_checkpoint_is_the_average(micro: Whisper, tmp_path: Path) -> None:
    run, _, seen = fit(micro, tmp_path)
    loaded = WhisperModule.load_from_checkpoint(tmp_path / "step-4.ckpt")
    assert same(of(loaded), seen.validated[1])
    other = WhisperModule(copy.deepcopy(micro))
    run.validate(other, loader(micro, 4), ckpt_path=tmp_path / "step-4.ckpt", verbose=False, weights_only=True)
    assert same(of(other), seen.validated[1])


def test_a_training_without_steps_left_ends_with_the_average(micro: Whisper, tmp_path: Path) -> None:
    _, whole, _ = fit(micro, tmp_path)
    _, again, seen = fit(micro, tmp_path / "again", tmp_path / "train-6.ckpt")
    assert not seen.after
    assert same(of(again), of(whole))


def test_the_module_has_the_average_before_it_leaves_the_device(
    micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning moves it to the CPU, and what the average holds stays where it is."""
    left: list[Weights] = []
    teardown = pl.strategies.SingleDeviceStrategy.teardown

    def leave(strategy: Any) -> None:
        left.append(of(strategy.lightning_module))
        teardown(strategy)

    monkeypatch.setattr(pl.strategies.SingleDeviceStrategy, "teardown", leave)
    _, module, seen = fit(micro, tmp_path)
    assert same(left[0], seen.validated[-1])
    assert same(of(module), seen.validated[-1])


def test_a_checkpoint_from_after_the_training_resumes_as_well(micro: Whisper, tmp_path: Path) -> None:
    run, module, _ = fit(micro, tmp_path, steps=4)
    run.save_checkpoint(tmp_path / "late.ckpt")
    late, kept = (read_checkpoint(tmp_path / name) for name in ("late.ckpt", "train-4.ckpt"))
    assert same(late["state_dict"], kept["state_dict"])
    assert same(late["average"]["raw_weights"], kept["average"]["raw_weights"])
    assert same(of(module), late["state_dict"])


def test_a_module_that_is_trained_twice_begins_with_the_average_or_the_checkpoint(
    micro: Whisper, tmp_path: Path
) -> None:
    """Also with a validation before the first step."""
    module = WhisperModule(copy.deepcopy(micro), OPTIM, ema_decay=DECAY)
    kept = ModelCheckpoint(tmp_path, "kept", every_n_train_steps=2)
    starts: list[Weights] = []
    for ckpt_path in (None, None, tmp_path / "kept.ckpt"):
        seen, averaged = Seen(), of(module)
        callbacks = [seen, *([] if starts else [kept])]
        steps = 3 if ckpt_path else 2
        run = trainer(tmp_path, max_steps=steps, num_sanity_val_steps=1, callbacks=callbacks, enable_checkpointing=True)
        rows: Any = examples(micro) * steps
        batches = torch.utils.data.DataLoader(rows, batch_size=4, collate_fn=collate)
        run.fit(module, batches, loader(micro, 4), ckpt_path=ckpt_path, weights_only=True)
        starts.append(seen.before[0])
        assert ckpt_path or same(starts[-1], averaged)
    raw = read_checkpoint(tmp_path / "kept.ckpt")["average"]["raw_weights"]
    assert all(torch.equal(starts[-1][name], value) for name, value in raw.items())


def test_an_average_may_begin_or_end_where_a_training_resumes(micro: Whisper, tmp_path: Path) -> None:
    whole = fit(micro, tmp_path / "whole")[2]
    without = fit(micro, tmp_path / "without", tmp_path / "whole/train-4.ckpt", ema_decay=None)[2]
    assert all(map(same, without.after, whole.after[4:]))
    assert same(without.validated[-1], without.after[-1])
    fit(micro, tmp_path / "plain", ema_decay=None)
    begun = fit(micro, tmp_path / "begun", tmp_path / "plain/train-4.ckpt")[2]
    assert all(map(same, begun.after, whole.after[4:]))
    for name, value in average_of(begun, 2).items():
        torch.testing.assert_close(begun.validated[-1][name], value)


def test_label_smoothing_changes_the_training_loss_and_not_the_validation(micro: Whisper, tmp_path: Path) -> None:
    losses = {}
    for smoothing in (0.0, 0.3):
        module = WhisperModule(copy.deepcopy(micro), OPTIM, label_smoothing=smoothing)
        run = trainer(tmp_path, max_steps=1)
        (before,) = run.validate(module, loader(micro, 4), verbose=False)
        run.fit(module, training(micro, 4, 1))
        losses[smoothing] = (before["val/loss"], float(run.callback_metrics["train/loss"]))
    (plain, plain_train), (smoothed, smoothed_train) = losses.values()
    assert smoothed == plain
    assert plain_train == pytest.approx(plain, rel=1e-5)
    assert smoothed_train != pytest.approx(plain_train, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_smoothing": 1}, r"loss\.label_smoothing=1: must be a number from 0 to below 1"),
        ({"label_smoothing": -0.1}, r"loss\.label_smoothing=-0\.1: must be a number from 0 to below 1"),
        ({"ema_decay": 1.0}, r"ema\.decay=1\.0: must be a number from 0 to below 1"),
    ],
)
def test_a_wrong_value_is_named(micro: Whisper, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kikitori.WhisperModule(micro, OPTIM, **settings)
