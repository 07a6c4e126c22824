"""An interrupted and resumed run equals an uninterrupted one: weights, optimizer, schedule, random states, clips."""

import copy
import shutil
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.precision import MixedPrecision
from training_runs import OPTIM, Drawn, examples, loader

from kikitori.data.collate import collate
from kikitori.data.sampler import StepSampler
from kikitori.model.whisper import Whisper
from kikitori.optim.average import split
from kikitori.optim.optimizers import adamw, adamw8bit, muon
from kikitori.runtime.errors import Stopped, TrainingError
from kikitori.runtime.signals import Stop
from kikitori.training import checkpoints
from kikitori.training.callbacks import ValidateEvery
from kikitori.training.checkpoints import SaveLastCheckpoint, best_checkpoint
from kikitori.training.history import TrainingHistory
from kikitori.training.lightning_module import WhisperModule

pytestmark = pytest.mark.filterwarnings("ignore")

STEPS, CLIPS, GLOBAL_BATCH, EVERY = 9, 4, 3, 3
STEPS_PER_EPOCH = 2


class Interrupt(pl.Callback):
    """Stops the run in the training step or validation after `step` steps; records the clips of each step."""

    def __init__(self, stop: Stop, step: int | None, where: str) -> None:
        self.stop, self.step, self.where = stop, step, where
        self.seen: dict[int, list[str]] = {}

    def _stop_at(self, trainer: pl.Trainer, where: str) -> None:
        if (trainer.global_step, where) == (self.step, self.where):
            self.stop.number = 15

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen[trainer.global_step] = [c for c, w in zip(batch["clips"], batch["weights"], strict=True) if w > 0]
        self._stop_at(trainer, "training")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop_at(trainer, "validation")


class Data(pl.LightningDataModule):
    def __init__(self, whisper: Whisper, workers: int) -> None:
        super().__init__()
        self.whisper, self.workers = whisper, workers

    def train_dataloader(self) -> Any:
        assert self.trainer is not None
        rows = examples(self.whisper)
        tokens = [len(row["tokens"]) - 1 for row in rows]
        sampler = StepSampler(
            *([1.0] * CLIPS, [100] * CLIPS, tokens, GLOBAL_BATCH, STEPS, 0, False),
            global_step=lambda: self.trainer.global_step if self.trainer else 0,
        )
        how = {"num_workers": self.workers, "multiprocessing_context": "fork" if self.workers else None}
        return torch.utils.data.DataLoader(Drawn(rows), batch_sampler=sampler, collate_fn=collate, **how)  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        return loader(self.whisper, 4)


def fit(
    micro: Whisper,
    folder: Path,
    stop_at: int | None = None,
    where: str = "training",
    workers: int = 0,
    precision: list[Any] | None = None,
    optim: Any = OPTIM,
    **recipe: Any,
) -> tuple[Interrupt, pl.Trainer, TrainingHistory]:
    """Trains, from the latest checkpoint if there is one."""
    torch.manual_seed(1)
    whisper = copy.deepcopy(micro)
    whisper.model.config.dropout = 0.3
    for module in whisper.model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.3
    stop, recorder = Stop(), TrainingHistory()
    interrupt = Interrupt(stop, stop_at, where)
    kept = ModelCheckpoint(folder / "checkpoints", "step-{step}", "val/loss", auto_insert_metric_name=False)
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=STEPS,
        callbacks=[
            recorder,
            ValidateEvery(EVERY),
            SaveLastCheckpoint(folder / "checkpoints", EVERY, stop),
            interrupt,
            kept,
        ],
        plugins=[checkpoints.CheckpointFiles(), *(precision or [])],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        val_check_interval=ValidateEvery.NEVER,
    )
    checkpoint = checkpoints.latest_valid(folder / "checkpoints") if (folder / "checkpoints").exists() else None
    try:
        module = WhisperModule(whisper, optim, **recipe)
        trainer.fit(module, Data(whisper, workers), ckpt_path=checkpoint, weights_only=True)
    except Stopped:
        assert stop_at is not None
    return interrupt, trainer, recorder


def state(folder: Path) -> dict[str, Any]:
    checkpoint = checkpoints.read_checkpoint(folder / "checkpoints/last.ckpt")
    recorder = checkpoint["callbacks"]["Recorder"]
    kept = {key: checkpoint[key] for key in ("global_step", "state_dict", "optimizer_states", "lr_schedulers")}
    kept |= {"scaler": checkpoint.get("MixedPrecision"), "average": checkpoint.get("average")}
    return {**kept, "history": recorder["history"], "processes": recorder["processes"]}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


ANYWHERE = [(step, "training") for step in range(1, STEPS)] + [(step, "validation") for step in (3, 6, 9)]


@pytest.mark.parametrize(("step", "where"), ANYWHERE)
def test_a_run_interrupted_anywhere_ends_like_an_uninterrupted_one(
    micro: Whisper, tmp_path: Path, step: int, where: str
) -> None:
    _, whole, _ = fit(micro, tmp_path / "whole")
    first, _, _ = fit(micro, tmp_path / "parts", step, where)
    second, parts, _ = fit(micro, tmp_path / "parts")
    assert same(state(tmp_path / "whole"), state(tmp_path / "parts"))
    assert Path(best_checkpoint(whole)["best"]).name == Path(best_checkpoint(parts)["best"]).name
    # Repeated steps used the same clips, each of which occurs once per epoch.
    assert all(first.seen[n] == second.seen[n] for n in first.seen.keys() & second.seen.keys())
    seen = {**first.seen, **second.seen}
    for epoch in range(STEPS // STEPS_PER_EPOCH):
        steps = range(epoch * STEPS_PER_EPOCH + 1, (epoch + 1) * STEPS_PER_EPOCH + 1)
        assert set(Counter(clip for n in steps for clip in seen[n]).values()) == {1}


def test_loader_workers_change_nothing(micro: Whisper, tmp_path: Path) -> None:
    fit(micro, tmp_path / "whole")
    fit(micro, tmp_path / "parts", 4, workers=2)
    fit(micro, tmp_path / "parts", workers=2)
    assert same(state(tmp_path / "whole"), state(tmp_path / "parts"))


def test_the_loss_scale_of_half_precision_is_restored(micro: Whisper, tmp_path: Path) -> None:
    def fp16() -> list[Any]:
        return [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2))]

    fit(micro, tmp_path / "whole", precision=fp16())
    fit(micro, tmp_path / "parts", 5, precision=fp16())
    fit(micro, tmp_path / "parts", precision=fp16())
    assert same(state(tmp_path / "whole"), state(tmp_path / "parts"))
    assert state(tmp_path / "whole")["scaler"]["scale"] > 2.0**10


# Settings of the optimizer, the loss and the average, beside those of the other tests.
RECIPES: dict[str, dict[str, Any]] = {
    "cosine": {"optim": adamw(lr=1e-3, schedule="cosine")},
    "wsd": {"optim": adamw(lr=1e-3, schedule="wsd", decay_steps=4)},
    "muon": {"optim": muon(lr=1e-3)},
    "smoothed": {"label_smoothing": 0.1},
    "average": {"ema_decay": 0.9},
    "all": {"optim": muon(lr=1e-3, schedule="wsd"), "label_smoothing": 0.1, "ema_decay": 0.9},
}
if find_spec("bitsandbytes"):
    RECIPES["8 bits"] = {"optim": adamw8bit(lr=1e-3), "ema_decay": 0.9}
PRECISIONS = ["32-true", "16-mixed", "bf16-mixed"]


@pytest.mark.parametrize(
    ("recipe", "precision", "step", "where"),
    [
        ("average", "16-mixed", 6, "validation"),
        ("muon", "32-true", 4, "training"),
        *(
            pytest.param(recipe, precision, step, where, marks=pytest.mark.long)
            for recipe in RECIPES
            for precision in PRECISIONS
            for step, where in ((4, "training"), (9, "validation"))
        ),
    ],
)
def test_every_recipe_resumes_to_the_bit(
    micro: Whisper, tmp_path: Path, recipe: str, precision: str, step: int, where: str
) -> None:
    def plugins() -> list[Any]:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2) if precision == "16-mixed" else None
        return [] if precision == "32-true" else [MixedPrecision(precision, "cpu", scaler)]  # type: ignore[arg-type]

    fit(micro, tmp_path / "whole", precision=plugins(), **RECIPES[recipe])
    fit(micro, tmp_path / "parts", step, where, precision=plugins(), **RECIPES[recipe])
    fit(micro, tmp_path / "parts", precision=plugins(), **RECIPES[recipe])
    assert same(state(tmp_path / "whole"), state(tmp_path / "parts"))


@pytest.mark.long
@pytest.mark.parametrize("forgotten", ["random", "schedule", "place", "average", "updates", "raw weights"])
def test_the_tests_detect_a_state_that_is_not_restored(
    micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    """Proves that the tests above can fail."""
    averaged: dict[str, Any] = {} if forgotten in ("random", "schedule", "place") else {"ema_decay": 0.9}
    fit(micro, tmp_path / "whole", **averaged)
    fit(micro, tmp_path / "parts", 4, **averaged)
    if forgotten == "random":
        monkeypatch.setattr("kikitori.training.history.set_random_state", lambda state: None)
    elif forgotten == "schedule":
        monkeypatch.setattr("torch.optim.lr_scheduler.LambdaLR.load_state_dict", lambda self, state: None)
    elif averaged:
        monkeypatch.setattr("kikitori.training.lightning_module.split", FORGETFUL[forgotten])
    else:
        make = StepSampler.__init__
        monkeypatch.setattr(StepSampler, "__init__", lambda self, *a, global_step=None, **k: make(self, *a, **k))
    fit(micro, tmp_path / "parts", **averaged)
    assert not same(state(tmp_path / "whole"), state(tmp_path / "parts"))


# What reads the average and the raw weights of a checkpoint, but for one of the three.
FORGETFUL: dict[str, Any] = {
    "average": lambda checkpoint: (split(checkpoint)[0], {}),
    "updates": lambda checkpoint: (0, split(checkpoint)[1]),
    "raw weights": lambda checkpoint: split(dict(checkpoint)),
}


def test_a_completed_run_takes_no_more_steps(micro: Whisper, tmp_path: Path) -> None:
    fit(micro, tmp_path)
    again, _, recorder = fit(micro, tmp_path)
    assert again.seen == {}
    assert [row["step"] for row in recorder.history] == [3, 6, 9]


def test_a_run_resumes_in_a_moved_folder(micro: Whisper, tmp_path: Path) -> None:
    fit(micro, tmp_path / "whole")
    fit(micro, tmp_path / "before", 7)
    (tmp_path / "before").rename(tmp_path / "after")
    _, trainer, _ = fit(micro, tmp_path / "after")
    assert same(state(tmp_path / "whole"), state(tmp_path / "after"))
    assert Path(best_checkpoint(trainer)["best"]).parent == tmp_path / "after/checkpoints"
    assert len(list((tmp_path / "after/checkpoints").glob("*.ckpt"))) == 2


def test_a_second_best_checkpoint_left_by_a_kill_is_removed(micro: Whisper, tmp_path: Path) -> None:
    """Killed after the new best was written and before the old one was removed."""
    fit(micro, tmp_path, 4)
    (best_one,) = (tmp_path / "checkpoints").glob("step-*.ckpt")
    for suffix in ("", ".sha256"):
        shutil.copy(f"{best_one}{suffix}", best_one.with_name(f"step-2.ckpt{suffix}"))
    fit(micro, tmp_path)
    assert not list((tmp_path / "checkpoints").glob("step-2.ckpt*"))
    assert len(list((tmp_path / "checkpoints").glob("*.ckpt"))) == 2


@pytest.mark.parametrize("what", ["loss", "weight"])
def test_no_checkpoint_is_written_of_values_that_are_not_finite(
    micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    class Spoil(Interrupt):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, *rest: Any) -> None:
            if trainer.global_step == 5:
                weight = pl_module.model.proj_out.weight
                (outputs["loss"] if what == "loss" else weight.data).fill_(float("inf"))
                self.stop.number = 15

    monkeypatch.setattr(sys.modules[__name__], "Interrupt", Spoil)
    messages = {
        "loss": r"the loss of step 5 is inf, at a learning rate of .*犬",
        "weight": "is not finite after step 5",
    }
    with pytest.raises(TrainingError, match=messages[what]):
        fit(micro, tmp_path)
    newest = checkpoints.latest_valid(tmp_path / "checkpoints")
    assert newest is not None
    assert checkpoints.read_checkpoint(newest)["global_step"] == 3


def test_the_seconds_since_the_last_validation_are_saved(
    micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Interrupt):
        def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
            now[0] += 100 * (trainer.global_step == 4)
            super().on_train_batch_end(trainer, *rest)

    now = [0.0]
    monkeypatch.setattr("kikitori.training.history.time.perf_counter", lambda: now[0])
    monkeypatch.setattr(sys.modules[__name__], "Interrupt", Slow)
    _, _, recorder = fit(micro, tmp_path, 5)
    assert recorder.history[-1]["step"] == 3
    assert checkpoints.read_checkpoint(tmp_path / "checkpoints/last.ckpt")["callbacks"]["Recorder"]["train_s"] == 100
    _, _, recorder = fit(micro, tmp_path)
    assert recorder.train_s == 100
