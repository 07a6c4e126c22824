"""A step, scoring and generation on a fake GPU: no tensor stays on the CPU, and the CPU waits only where it must.

Mixing devices raises an error in torch itself. What needs a real GPU is in tests/gpu: the backward pass, for one.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from fake_gpu import GPU, Waits, fake_gpu
from training_runs import OPTIM, examples, trainer, training

import kikitori
from kikitori.data.collate import Batch, collate
from kikitori.data.encoder_cache import _encode_all
from kikitori.guard.reader import Job, Reader
from kikitori.guard.recordings import READINGS, Recording
from kikitori.inference.timestamps import TimestampRule
from kikitori.model.whisper import Whisper
from kikitori.optim.average import WeightAverage
from kikitori.training.callbacks import ProgressReport, ThroughputMonitor, ValidateEvery
from kikitori.training.history import TrainingHistory
from kikitori.training.lightning_module import WhisperModule

END = 256


def step_of(whisper: Whisper, **settings: Any) -> "Step":
    module = Step(whisper, kikitori.adamw(), **settings)
    module._device = GPU  # as Lightning sets it
    module._trainer = SimpleNamespace(progress_bar_callback=None, global_step=1)  # type: ignore[assignment]
    return module


@pytest.fixture
def whisper() -> Iterator[Whisper]:
    with fake_gpu() as whisper:
        yield whisper


def batch_of(module: WhisperModule, **more: Any) -> Batch:
    """Four clips, moved to the GPU as Lightning moves them."""
    batch = collate([{**example, **more} for example in examples(module.whisper)])
    return module.transfer_batch_to_device(batch, GPU, 0)


class Step(WhisperModule):
    """A module without a Trainer and without a backward pass."""

    backward_losses: tuple[torch.Tensor, ...] = ()

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        step = {"zero_grad": lambda: None, "step": lambda: self.on_before_optimizer_step(None)}
        return SimpleNamespace(**step, param_groups=[{"lr": 0.1}])

    def lr_schedulers(self) -> Any:
        return SimpleNamespace(step=lambda: None)

    def no_sync(self) -> Any:
        return nullcontext()

    def manual_backward(self, loss: torch.Tensor, *arguments: Any, **named: Any) -> None:
        self.backward_losses += (loss,)
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None

    def log(self, *arguments: Any, **named: Any) -> None:
        pass


class Watch(pl.Callback):
    """Notes what reads a value from the second step to the last."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self.waits = Waits("cpu")
            self.waits.__enter__()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.waits.__exit__(None, None, None)


def test_training_reads_nothing_but_the_loss_of_the_step_before(micro: Whisper, tmp_path: Path) -> None:
    """On the CPU, with all of Lightning and transformers: on a GPU, each value that is read would be waited for."""
    watch = Watch()
    callbacks = [TrainingHistory(), ThroughputMonitor(), ProgressReport(), ValidateEvery(1000), watch]
    run = trainer(tmp_path, max_steps=4, callbacks=callbacks, log_every_n_steps=1000)
    run.fit(WhisperModule(micro, OPTIM), training(micro, 4, 4))
    assert watch.waits.functions == {"read_later"}


@pytest.mark.parametrize("sizes", [None, {100: 3}])
def test_a_step_on_a_gpu_does_not_wait(whisper: Whisper, sizes: Any) -> None:
    module = step_of(whisper, micro_batch_sizes=sizes)
    batch = batch_of(module, weight=0.1)
    with Waits() as waits:
        loss = module.training_step(batch, 0)
    assert waits.functions == set()
    assert {loss.device, *(part.device for part in module.backward_losses)} == {GPU}
    assert len(module.backward_losses) == (2 if sizes else 1)


def test_a_step_with_smoothed_labels_and_an_average_does_not_wait(whisper: Whisper) -> None:
    module = step_of(whisper, label_smoothing=0.1, ema_decay=0.9)
    module.average = WeightAverage(module, 0.9)
    batch = batch_of(module, weight=0.1)
    with Waits() as waits:
        module.training_step(batch, 0)
        module.average.show(averaged=True)
    assert waits.functions == set()
    assert {value.device for weights in module.average.both() for value in weights} == {GPU}
    assert module.average.updates == 1


def test_a_step_with_previous_text_does_not_wait(whisper: Whisper) -> None:
    module = step_of(whisper)
    prompted = [{**e, "prompt": 2, "tokens": [7, 8, *e["tokens"]], "weight": 0.1} for e in examples(whisper)]
    with Waits() as waits:
        loss = module.training_step(module.transfer_batch_to_device(collate(prompted), GPU, 0), 0)
    assert waits.functions == set()
    assert loss.device == GPU


def test_the_guard_reads_on_the_gpu(whisper: Whisper) -> None:
    recordings = [Recording("clips", str(i), torch.zeros(8_000), "文", "ja") for i in range(2)]
    reader: Any = Reader(whisper).eval()
    reader._device = GPU
    for reading in READINGS:
        with torch.no_grad(), Waits(tokens=cycle([5, 6, 7])) as waits:
            rows = reader.predict_step(Job(reading, recordings), 0)
        assert [row["recording"] for row in rows] == ["0", "1"]
        assert waits.functions <= {"_features", "greedy", "_drop", "language_probabilities"}
    assert {"detected" in row for row in rows} == {True}


def test_the_rule_for_timestamps_keeps_to_the_gpu(whisper: Whisper) -> None:
    rule, logits = TimestampRule(13, 12, 10, 5), torch.zeros(2, 24, device=GPU)
    with Waits():
        rule([[], [13, 3]], logits)
    assert logits.device == GPU


def test_the_callbacks_of_a_step_do_not_wait(whisper: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    """They read the loss of the step before, for whose end they wait by an event."""
    events: list[str] = []
    event = SimpleNamespace(record=lambda: events.append("record"), synchronize=lambda: events.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    module = step_of(whisper)
    batch = batch_of(module, weight=0.1)
    trainer: Any = SimpleNamespace(world_size=1, global_step=1, log_every_n_steps=2)
    history, monitor = TrainingHistory(), ThroughputMonitor()
    monitor.on_train_start(trainer, module)
    with Waits() as waits:
        for _ in range(2):
            loss = module.training_step(batch, 0)
            for callback in (history, monitor):
                callback.on_train_batch_end(trainer, module, {"loss": loss}, batch, 0)
    assert events == ["record", "synchronize", "record"]
    assert waits.functions == set()


def test_scoring_waits_for_tokens_and_sums_only(whisper: Whisper) -> None:
    """Rows end one after the other, and are removed from the batch."""
    whisper.model.generation_config.suppress_tokens = [1, 2]
    module = step_of(whisper).eval()
    batch = batch_of(module)
    with torch.no_grad(), Waits(tokens=cycle([5, END, 6, 7, 8])) as waits:
        predictions = module.predict_step(batch, 0)
    assert waits.functions == {"greedy", "_drop"}
    assert [row[0] for row in predictions] == batch["clips"]
    with torch.no_grad(), Waits(tokens=cycle([5, END, 6, 7, 8])) as waits:
        module.validation_step(batch, 0)
    assert waits.functions == {"greedy", "_drop", "validation_step"}


def test_the_sums_of_a_validation_are_added_up_on_the_gpu(whisper: Whisper) -> None:
    """Processes add theirs up there: NCCL takes no others."""
    module, devices = step_of(whisper), set()

    def reduce(tensor: torch.Tensor, reduce_op: str) -> torch.Tensor:
        devices.add(tensor.device)
        return torch.zeros(tensor.shape)

    strategy, state = SimpleNamespace(reduce=reduce), SimpleNamespace(fn=None)
    module._trainer = SimpleNamespace(strategy=strategy, state=state)  # type: ignore[assignment]
    with torch.no_grad(), Waits():
        module.eval().validation_step(batch_of(module), 0)
    module.log_dict = lambda *arguments, **named: None  # type: ignore[method-assign]
    with Waits():
        module.on_validation_epoch_end()
    assert devices == {GPU}


def test_a_recording_is_transcribed_on_the_models_device(micro: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    class Encoded(Exception):  # noqa: N818
        pass

    def encode(model: Any, input_features: torch.Tensor) -> None:
        raise Encoded(input_features.device)

    monkeypatch.setattr("kikitori.inference.generate.encode", encode)
    micro.model.to("meta")  # type: ignore[arg-type]
    with pytest.raises(Encoded, match="meta"):
        kikitori.transcribe(micro, torch.randn(16_000) / 10)


def test_a_cache_of_encoder_outputs_is_computed_on_the_gpu_and_kept_on_the_cpu(whisper: Whisper) -> None:
    trainer: Any = SimpleNamespace(
        strategy=SimpleNamespace(root_device=GPU), precision_plugin=SimpleNamespace(forward_context=nullcontext)
    )
    batch = collate(examples(whisper))
    cache = type("Cache", (dict,), {"dtype": torch.float32})()
    cache |= {clip: torch.zeros(50, 32) for clip in batch["clips"]}
    # It is there already, and fake weights cannot be moved.
    whisper.model.to = lambda device: whisper.model  # type: ignore[method-assign]
    _encode_all(trainer, whisper.model, [batch], cache)  # type: ignore[arg-type]
