"""metrics.csv, TensorBoard and the history of a run that was killed and resumed equal those of an undisturbed run."""

import copy
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import OPTIM, Drawn, examples, loader

from kikitori.data.collate import collate
from kikitori.data.sampler import StepSampler
from kikitori.model.whisper import Whisper
from kikitori.runtime.errors import Stopped
from kikitori.runtime.signals import Stop
from kikitori.training.callbacks import ThroughputMonitor, ValidateEvery
from kikitori.training.checkpoints import CheckpointFiles, SaveLastCheckpoint, latest_valid, saved_step
from kikitori.training.history import MetricsFile, TrainingHistory, resume_loggers
from kikitori.training.lightning_module import WhisperModule

pytestmark = pytest.mark.filterwarnings("ignore")

STEPS, EVERY, LOGGED = 9, 4, 2
# Columns that depend on the clock.
TIMES = ("train/clips_per_s", "train/audio_hours_per_s")
# What a kill can come between.
MOMENTS = ("step", "step end", "validation", "validation end", "save")


class Killed(BaseException):
    """Ends training as a kill does: nothing is saved."""


class Kill(pl.Callback):
    """Kills the run at a moment of a step, or lets a signal stop it there."""

    def __init__(self, stop: Stop, step: int, moment: str, by_signal: bool) -> None:
        self.stop, self.at, self.by_signal = stop, (step, moment), by_signal

    def _hit(self, trainer: pl.Trainer, moment: str) -> None:
        if (trainer.global_step, moment) == self.at:
            if not self.by_signal:
                raise Killed
            self.stop.number = 15

    def on_train_batch_start(self, trainer: pl.Trainer, *arguments: Any) -> None:
        self._hit(trainer, "step")

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        self._hit(trainer, "step end")

    def on_validation_start(self, trainer: pl.Trainer, *arguments: Any) -> None:
        self._hit(trainer, "validation")

    def on_validation_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        self._hit(trainer, "validation end")

    def on_save_checkpoint(self, trainer: pl.Trainer, *arguments: Any) -> None:
        self._hit(trainer, "save")


class Data(pl.LightningDataModule):
    """Four clips in batches of three, at the Trainer's step."""

    def __init__(self, whisper: Whisper) -> None:
        super().__init__()
        self.whisper = whisper

    def train_dataloader(self) -> Any:
        rows = examples(self.whisper)
        tokens = [len(row["tokens"]) - 1 for row in rows]
        step = lambda: self.trainer.global_step if self.trainer else 0  # noqa: E731
        sampler = StepSampler([1.0] * 4, [100] * 4, tokens, 3, STEPS, 0, False, global_step=step)
        return torch.utils.data.DataLoader(Drawn(rows), batch_sampler=sampler, collate_fn=collate)

    def val_dataloader(self) -> Any:
        return loader(self.whisper, 4)


def fit(micro: Whisper, folder: Path, kill: tuple[int, str, bool] | None = None) -> TrainingHistory:
    """Trains, from the latest checkpoint if there is one."""
    torch.manual_seed(1)
    whisper, stop, history = copy.deepcopy(micro), Stop(), TrainingHistory()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        log_every_n_steps=LOGGED,
        callbacks=[
            *(history, ValidateEvery(EVERY), ThroughputMonitor()),
            SaveLastCheckpoint(folder / "checkpoints", EVERY, stop),
            *([Kill(stop, *kill)] if kill else []),
            ModelCheckpoint(folder / "checkpoints", "step-{step}", "val/loss", auto_insert_metric_name=False),
        ],
        plugins=[CheckpointFiles()],
        logger=[MetricsFile(folder), TensorBoardLogger(folder, "tensorboard", "")],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        val_check_interval=ValidateEvery.NEVER,
    )
    checkpoint = latest_valid(folder / "checkpoints") if (folder / "checkpoints").exists() else None
    resume_loggers(trainer.loggers, saved_step(checkpoint) if checkpoint else 0)
    try:
        trainer.fit(WhisperModule(whisper, OPTIM), datamodule=Data(whisper), ckpt_path=checkpoint, weights_only=True)
    except (Killed, Stopped):
        assert kill
    for logger in trainer.loggers:
        logger.finalize("")
    return history


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as lines:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(lines)]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag not in TIMES]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Filled by the first test that needs it, since the fixture of the model is made for one test."""
    return {"folder": tmp_path_factory.mktemp("undisturbed")}


def expected(micro: Whisper, undisturbed: dict[str, Any]) -> dict[str, Any]:
    if "rows" not in undisturbed:
        folder = undisturbed["folder"]
        undisturbed |= {"history": fit(micro, folder).history, "rows": rows(folder), "scalars": scalars(folder)}
    return undisturbed


def test_a_step_is_the_number_of_optimizer_steps_in_every_record(micro: Whisper, undisturbed: dict[str, Any]) -> None:
    made = expected(micro, undisturbed)
    trained = [int(row["step"]) for row in made["rows"] if row["train/loss"]]
    validated = [int(row["step"]) for row in made["rows"] if row["val/cer"]]
    assert trained == [2, 4, 6, 8]
    assert validated == [row["step"] for row in made["history"]] == [4, 8, 9]
    assert [step for step, _ in made["scalars"]["train/loss"]] == trained
    assert [step for step, _ in made["scalars"]["val/cer"]] == validated
    # One row holds all that was measured at a step, under names without duplicates.
    assert all(row["train/lr"] and row["train/grad_norm"] for row in made["rows"] if row["train/loss"])
    assert sorted(made["rows"][0]) == sorted(
        ["step", "train/grad_norm", "train/loss", "train/lr", "val/cer", "val/cut", "val/loss", "val/wer"]
    )


KILLS = st.tuples(st.integers(0, STEPS), st.sampled_from(MOMENTS), st.booleans())


@hypothesis.settings(max_examples=12, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(kills=st.lists(KILLS, min_size=1, max_size=3))
@hypothesis.example(kills=[(EVERY, "validation end", False), (6, "step end", False)])
@hypothesis.example(kills=[(7, "step end", True), (EVERY + 1, "save", False), (STEPS, "validation", True)])
def test_every_record_of_a_killed_run_equals_an_undisturbed_one(
    micro: Whisper,
    undisturbed: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
    kills: Sequence[tuple[int, str, bool]],
) -> None:
    folder = tmp_path_factory.mktemp("killed")
    for kill in kills:
        fit(micro, folder, kill)
    history = fit(micro, folder)
    made = expected(micro, undisturbed)
    assert rows(folder) == made["rows"]
    assert history.history == made["history"]
    assert scalars(folder) == made["scalars"]


def test_a_row_that_a_kill_cut_off_is_dropped(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path)
    logger.log_metrics({"train/loss": 2.0, "train/lr": 0.1}, 2)
    logger.log_metrics({"val/cer": 0.5}, 4)
    with logger.path.open("a") as file:
        file.write("6,1.")
    resumed = MetricsFile(tmp_path)
    assert [row["step"] for row in resumed.resume_at(6)] == [2, 4]
    resumed.log_metrics({"train/loss": 1.5, "train/lr": 0.2}, 6)
    assert logger.path.read_text().splitlines() == [
        "step,train/loss,train/lr,val/cer",
        "2,2.0,0.1,",
        "4,,,0.5",
        "6,1.5,0.2,",
    ]


@pytest.mark.parametrize("content", [b"", b"\x80\x04damaged", b"step\n", b"step,train/loss\nx,y\n2,z\n,\n"])
def test_a_damaged_file_does_not_prevent_a_resume(tmp_path: Path, content: bytes) -> None:
    logger = MetricsFile(tmp_path)
    logger.path.write_bytes(content)
    assert logger.resume_at(4) == []
    logger.log_metrics({"train/loss": 1.0}, 6)
    assert logger.path.read_text().splitlines() == ["step,train/loss", "6,1.0"]


def test_steps_that_an_earlier_version_counted_from_zero_are_corrected(tmp_path: Path) -> None:
    logger = MetricsFile(tmp_path)
    logger.path.write_text("epoch,lr-AdamW/pg1,step,train/loss\n,0.1,9,\n0,,9,2.5\n0,,19,1.5\n")
    logger.resume_at(10)
    assert logger.path.read_text().splitlines() == ["lr-AdamW/pg1,step,train/loss", "0.1,10,", ",10,2.5"]


def test_a_line_of_any_length_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(f"step,val/cer\n1,{'9' * 200_000}\n2,0.5\n")
    assert MetricsFile(tmp_path).resume_at(5) == [{"step": 2, "val/cer": 0.5}]
