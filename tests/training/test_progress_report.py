"""What a run reports while it trains: lines in a log, bars in a terminal, and when it will end."""

import logging
import math
import re
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from terminal import run_in_terminal, widest
from training_runs import OPTIM, loader, trainer, training

from kikitori.model.whisper import Whisper
from kikitori.optim.optimizers import adamw
from kikitori.runtime import console
from kikitori.runtime.console import Pace, progress_bar
from kikitori.training import callbacks
from kikitori.training.callbacks import ProgressReport, ThroughputMonitor, ValidateEvery
from kikitori.training.history import TrainingHistory
from kikitori.training.lightning_module import WhisperModule

pytestmark = pytest.mark.filterwarnings("ignore")


def fit(micro: Whisper, folder: Path, steps: int = 8, validate_every: int = 4, more: Any = ()) -> None:
    reported = [TrainingHistory(), ValidateEvery(validate_every), ThroughputMonitor(), *more, ProgressReport()]
    quiet = {"num_sanity_val_steps": 0, "check_val_every_n_epoch": None, "val_check_interval": ValidateEvery.NEVER}
    saved = any(isinstance(callback, ModelCheckpoint) for callback in more)
    made = trainer(
        folder, max_steps=steps, callbacks=reported, log_every_n_steps=2, enable_checkpointing=saved, **quiet
    )
    made.fit(WhisperModule(micro, OPTIM), training(micro, 4, steps), loader(micro, 4))


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == callbacks.__name__]


def test_a_training_reports_its_first_steps_and_then_a_line_now_and_then(
    micro: Whisper, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fit(micro, tmp_path)
    assert [line.partition(":")[0] for line in lines(caplog)] == ["step 1/8", "step 2/8", "step 4/8", "step 8/8"]
    first, second, *validations = lines(caplog)
    # The first step says that it works; its speed says nothing yet.
    assert re.fullmatch(r"step 1/8: loss \d+\.\d+, lr \S+", first)
    assert re.fullmatch(r"step 2/8: loss \d+\.\d+, lr \S+, \d+\.\d clips/s, training ends in \d+ s", second)
    pattern = r"step \d/8: validation CER \d+\.\d %, WER \d+\.\d %, loss \d+\.\d+; (best .*); \d+ s"
    assert all(re.fullmatch(pattern, line) for line in validations)


def test_lines_are_as_far_apart_as_set(
    micro: Whisper, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(callbacks, "LINE_EVERY_S", 0.0)
    fit(micro, tmp_path)
    steps = [line.partition(":")[0] for line in lines(caplog) if "loss" in line and "validation" not in line]
    assert steps == [f"step {step}/8" for step in (1, 2, 4, 6, 8)]


def test_a_training_without_validations_or_end_is_reported(
    micro: Whisper, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a Trainer of one's own may have it."""

    class Endless(WhisperModule):
        def total_steps(self) -> float:
            return math.inf

    caplog.set_level(logging.INFO)
    optimizer = adamw(lr=1e-3, schedule="constant", warmup_steps=0)
    made = trainer(tmp_path, max_steps=4, callbacks=[ProgressReport()], log_every_n_steps=2)
    made.fit(Endless(micro, optimizer), training(micro, 4, 4))
    assert [line.partition(":")[0] for line in lines(caplog)][:2] == ["step 1/inf", "step 2/inf"]


def test_a_bar_does_without_scores_that_were_forgotten(
    micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a run that was resumed with other validation clips, in a terminal."""
    monkeypatch.setattr(callbacks, "shows_bars", lambda: True)
    monkeypatch.setattr(callbacks, "recorded", lambda trainer: [{"step": 3, "train/loss": 1.0}])
    made = trainer(tmp_path, max_steps=1, callbacks=[ProgressReport()], log_every_n_steps=2)
    made.fit(WhisperModule(micro, OPTIM), training(micro, 4, 1))
    assert made.global_step == 1


class Rates(pl.Callback):
    """Gives each validation the next of some error rates."""

    def __init__(self, *rates: float) -> None:
        self.rates = iter(rates)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module._log_rates = lambda prefix: pl_module.log_dict(  # type: ignore[assignment]
            {"val/loss": 1.0, "val/wer": 1.0, "val/cer": next(self.rates)}
        )


def test_a_validation_names_the_best_one_by_the_score_that_chooses_the_checkpoint(
    micro: Whisper, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fit(micro, tmp_path, more=[Rates(0.2, 0.25), ModelCheckpoint(tmp_path, monitor="val/cer")])
    assert "CER 20.0 %" in lines(caplog)[-2]
    assert lines(caplog)[-2].split("; ")[1] == "best so far"
    assert lines(caplog)[-1].split("; ")[1] == "best CER 20.0 % at step 4"


def test_early_stopping_says_where_and_why(micro: Whisper, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stopping = EarlyStopping("val/cer", patience=2)
    fit(micro, tmp_path, 12, 2, [Rates(0.2, 0.3, 0.25), stopping])
    why = "val/cer has not improved in 2 validations (early stopping)"
    assert lines(caplog)[-1] == f"step 6/12: training ends here, since {why}"


@pytest.mark.parametrize("limit", ["stopping_threshold", "divergence_threshold"])
def test_every_reason_of_early_stopping_is_named(
    micro: Whisper, tmp_path: Path, caplog: pytest.LogCaptureFixture, limit: str
) -> None:
    caplog.set_level(logging.INFO)
    value = {"stopping_threshold": 0.3, "divergence_threshold": 0.1}[limit]
    fit(micro, tmp_path, 12, 2, [Rates(0.2), EarlyStopping("val/cer", **{limit: value})])  # type: ignore[arg-type]
    assert lines(caplog)[-1].startswith(f"step 2/12: training ends here, since {limit.capitalize().replace('_', ' ')}")


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@hypothesis.given(
    first=st.integers(0, 30),
    steps=st.integers(3, 60),
    every=st.integers(1, 70),
    step_s=st.floats(0.01, 100),
    validation_s=st.floats(0, 1000),
)
def test_the_time_left_is_exact_if_all_steps_and_validations_take_equally_long(
    first: int, steps: int, every: int, step_s: float, validation_s: float
) -> None:
    clock, total = Clock(), first + steps
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "time", clock)
        pace = Pace(first, total, every, validation_s)
        estimates = {}
        for step in range(first + 1, total + 1):
            clock.now += 5 * step_s if step == first + 1 else step_s  # the first step is slow
            pace.step_done(step)
            estimates[step] = (clock.now, pace.seconds_left(step))
            if step % every == 0 or step == total:
                clock.now += validation_s
                pace.validations_s.append(validation_s)
    assert estimates.pop(first + 1)[1] is None
    for now, left in estimates.values():
        assert now + left == pytest.approx(clock.now)


def test_a_long_task_outside_a_terminal_is_reported_in_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    with progress_bar() as progress:
        progress.get_time = clock.monotonic
        task = progress.add_task("decoding clips", total=100)
        for _ in range(100):
            clock.now += 1
            progress.advance(task)
    assert [record.getMessage() for record in caplog.records] == [
        "decoding clips: 31 %, 69 s left",
        "decoding clips: 61 %, 39 s left",
        "decoding clips: 91 %, 9 s left",
    ]


SCRIPT = """
import logging, sys, tempfile, time
from pathlib import Path
import torch
sys.path[:0] = {paths!r}
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
file = logging.FileHandler(sys.argv[1])
logging.getLogger().addHandler(file)
from kikitori.model.loading import build_whisper
from kikitori.runtime.console import quiet_libraries
from kikitori.training import callbacks
from test_progress_report import fit
quiet_libraries()
callbacks.LINE_EVERY_S = callbacks.DRAW_EVERY_S = 0.0
whisper = build_whisper(d_model=32, encoder_layers=1, decoder_layers=1, attention_heads=2, window_s=1, language="ja",
                        task="transcribe", max_label_tokens=64, init_std=0.02)
fit(whisper, Path(sys.argv[1]).parent)
"""


@pytest.mark.slow
def test_a_terminal_of_80_columns_shows_a_bar_and_keeps_the_validations(tmp_path: Path) -> None:
    here = Path(__file__).parent
    script = SCRIPT.format(paths=[str(here), str(here.parent / "helpers")])
    shown = run_in_terminal(["-c", script, str(tmp_path / "train.log")])
    assert widest(shown) <= 80
    assert [line.partition(":")[0] for line in shown if "validation CER" in line] == ["step 4/8", "step 8/8"]
    assert any(re.match(r"training +━.* 8/8 loss .*, CER .* %, \d+ s left", line) for line in shown)
    assert "Epoch" not in "\n".join(shown)
    # What the bar shows is not repeated above it, but is in the file.
    assert not any("clips/s" in line for line in shown)
    assert (tmp_path / "train.log").read_text().count("clips/s") == 4
