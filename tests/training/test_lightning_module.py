import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from training_runs import OPTIM, TEXTS, Drawn, examples, loader, trainer, training
from transformers.modeling_outputs import BaseModelOutput

from kikitori.data.collate import IGNORE_INDEX, collate
from kikitori.data.sampler import StepSampler, epoch_batches
from kikitori.metrics.error_rates import corpus_rate, edits_and_lengths, score_clips
from kikitori.model.loading import load_whisper
from kikitori.model.whisper import Whisper, encode
from kikitori.optim.optimizers import adamw
from kikitori.runtime.errors import ConfigError, Diverged, OutOfMemory, TrainingError
from kikitori.training.batch_size_finder import split_on_oom
from kikitori.training.callbacks import ValidateEvery
from kikitori.training.history import TrainingHistory
from kikitori.training.lightning_module import WhisperModule, refuse_layerdrop
from kikitori.training.loss import clip_losses


class Gradients(pl.Callback):
    """Keeps the gradients of the first step."""

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.first = {n: p.grad.clone() for n, p in pl_module.model.named_parameters() if p.requires_grad}


def test_a_training_steps_loss_and_gradients_equal_the_stock_models(micro: Whisper, tmp_path: Path) -> None:
    stock_model = copy.deepcopy(micro.model)
    gradients = Gradients()
    run = trainer(tmp_path, max_steps=1, callbacks=[gradients])
    run.fit(WhisperModule(micro, OPTIM), training(micro, 4, 1))

    tokenizer = micro.processor.tokenizer
    features = torch.stack([e["input_features"] for e in examples(micro)])
    padded = tokenizer.pad({"input_ids": tokenizer(TEXTS)["input_ids"]}, return_tensors="pt")
    labels = padded["input_ids"].masked_fill(padded["attention_mask"].ne(1), IGNORE_INDEX)[:, 1:]
    stock = stock_model(input_features=features, labels=labels)
    stock.loss.backward()
    torch.testing.assert_close(run.callback_metrics["train/loss"], stock.loss.detach())
    for name, parameter in stock_model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(gradients.first[name], parameter.grad, msg=name)


def test_a_step_in_micro_batches_has_the_loss_and_gradients_of_one_large_batch(micro: Whisper, tmp_path: Path) -> None:
    """Their clips differ in length, so the mean of the micro-batches' means would be another loss."""
    kept = []
    for at_once in (4, 2, 3, 1):
        gradients, recorder = Gradients(), TrainingHistory()
        callbacks = [gradients, recorder, ValidateEvery(1)]
        settings = {"check_val_every_n_epoch": None, "val_check_interval": ValidateEvery.NEVER}
        run = trainer(
            tmp_path,
            max_steps=1,
            callbacks=callbacks,
            num_sanity_val_steps=0,
            **settings,
        )
        module = WhisperModule(copy.deepcopy(micro), OPTIM, micro_batch_sizes={100: at_once})
        run.fit(module, training(micro, 4, 1), loader(micro, 4))
        kept.append((gradients.first, recorder.history[0]["train/loss"]))
    (first, loss), *others = kept
    for gradient, other in others:
        assert other == pytest.approx(loss, rel=1e-5)
        for name in first:
            torch.testing.assert_close(gradient[name], first[name], msg=name)


def test_validation_scores_do_not_depend_on_the_batches(micro: Whisper, tmp_path: Path) -> None:
    module = WhisperModule(micro, OPTIM)
    runs = [trainer(tmp_path).validate(module, loader(micro, size), verbose=False)[0] for size in (1, 3, 4)]
    assert runs[0] == pytest.approx(runs[1], rel=1e-5)
    assert runs[0] == pytest.approx(runs[2], rel=1e-5)


def clips_of_two_windows(whisper: Whisper) -> list[dict[str, Any]]:
    rows = examples(whisper)
    return [{**row, "input_features": row["input_features"][:, : (60, 100)[i % 2]]} for i, row in enumerate(rows)]


def test_a_clips_transcript_is_the_same_alone_and_in_any_batch(micro: Whisper) -> None:
    with torch.no_grad():  # large enough for the model to generate text
        for parameter in micro.model.parameters():
            parameter.mul_(8)
    rows, module = clips_of_two_windows(micro), WhisperModule(micro).eval()
    together = {row[0]: row for row in module.predict_step(collate(rows), 0)}
    for row in rows:
        assert module.predict_step(collate([row]), 0) == [together[row["clip"]]]
        batch = [row, rows[0], rows[1], row]
        assert sorted(module.predict_step(collate(batch), 0)) == sorted(together[r["clip"]] for r in batch)
    assert len({text for _, _, text, _ in together.values()}) > 1


@pytest.mark.parametrize("num_beams", [1, 3])
def test_transcripts_equal_those_of_stock_generate(micro: Whisper, num_beams: int) -> None:
    with torch.no_grad():
        for parameter in micro.model.parameters():
            parameter.mul_(8)
    micro.configure_generation(max_new_tokens=12, num_beams=num_beams)
    module = WhisperModule(micro).eval()
    rows = examples(micro)
    features = torch.stack([row["input_features"] for row in rows])
    sequences = micro.model.generate(features, language="ja", task="transcribe")
    expected = micro.processor.decode(sequences)
    assert [text for _, _, text, _ in module.predict_step(collate(rows), 0)] == expected
    assert len(set(expected)) > 1


def test_a_step_over_several_windows_has_the_gradients_of_its_clips(micro: Whisper, tmp_path: Path) -> None:
    rows = clips_of_two_windows(micro)
    tokens = [len(row["tokens"]) - 1 for row in rows]
    other = copy.deepcopy(micro.model)
    for row, n in zip(rows, tokens, strict=True):
        labels = torch.tensor([row["tokens"][1:]])
        outputs = BaseModelOutput(last_hidden_state=encode(other, row["input_features"][None]))
        (other(encoder_outputs=outputs, labels=labels).loss * n / sum(tokens)).backward()
    gradients = Gradients()
    sampler = StepSampler([1.0] * 4, [100] * 4, tokens, 4, 1, 0, False)
    batches = torch.utils.data.DataLoader(Drawn(rows), batch_sampler=sampler, collate_fn=collate)
    trainer(tmp_path, max_steps=1, callbacks=[gradients]).fit(WhisperModule(micro, OPTIM), batches)
    for name, parameter in other.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(gradients.first[name], parameter.grad, msg=name)


def test_validation_and_loss_share_one_pass_of_the_encoder(
    micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    micro.model.model.encoder.layers[0].register_forward_hook(lambda *arguments: passes.append(1))
    trainer(tmp_path).validate(WhisperModule(micro, OPTIM), loader(micro, 4), verbose=False)
    assert len(passes) == 1


def test_a_batch_that_does_not_fit_into_memory_is_halved() -> None:
    tried: list[tuple[int, slice]] = []

    def compute(features: torch.Tensor, rows: slice) -> list[int]:
        tried.append((len(features), rows))
        if len(features) > 2:
            raise torch.OutOfMemoryError("too much")
        return features[:, 0].int().tolist()

    features = torch.arange(7.0)[:, None]
    assert [i for found in split_on_oom(compute, features, slice(3, 10)) for i in found] == list(range(7))
    assert [(n, rows.start) for n, rows in tried if n <= 2] == [(1, 3), (2, 4), (2, 6), (2, 8)]
    with pytest.raises(torch.OutOfMemoryError):
        split_on_oom(lambda *part: (_ for _ in ()).throw(torch.OutOfMemoryError("never")), features, slice(0, 7))


def test_validation_loss_is_the_mean_over_supervised_tokens(micro: Whisper, tmp_path: Path) -> None:
    module = WhisperModule(micro, OPTIM)
    (result,) = trainer(tmp_path).validate(module, loader(micro, 2), verbose=False)
    batch = collate(examples(micro))
    logits = micro.model.eval()(input_features=batch["input_features"][0], labels=batch["labels"]).logits
    real = batch["labels"] != IGNORE_INDEX
    expected = torch.nn.functional.cross_entropy(logits[real], batch["labels"][real])
    assert result["val/loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_validation_cer_equals_that_of_score_clips(micro: Whisper, tmp_path: Path) -> None:
    module = WhisperModule(micro, OPTIM)
    (result,) = trainer(tmp_path).validate(module, loader(micro, 3), verbose=False)
    rows: Any = [row for batch in trainer(tmp_path).predict(module, loader(micro, 3)) or [] for row in batch]
    _, references, hypotheses, _ = zip(*rows, strict=True)
    for rate in ("cer", "wer"):
        expected = corpus_rate(edits_and_lengths(score_clips(references, hypotheses, "ja"), rate))
        assert result[f"val/{rate}"] == pytest.approx(expected, rel=1e-6)


def test_a_step_in_micro_batches_is_one_optimizer_step(micro: Whisper, tmp_path: Path) -> None:
    module = WhisperModule(micro, OPTIM, micro_batch_sizes={100: 1})
    run = trainer(tmp_path, max_steps=2)
    run.fit(module, training(micro, 2, 2))
    assert run.global_step == 2
    scheduler: Any = run.lr_scheduler_configs[0].scheduler
    assert scheduler.last_epoch == 2


def test_a_checkpoint_loads_with_weights_only(micro: Whisper, tmp_path: Path) -> None:
    module = WhisperModule(micro, OPTIM)
    run = trainer(tmp_path, max_steps=1, enable_checkpointing=True)
    run.fit(module, training(micro, 4, 1))
    run.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["recipe"]["builder"] == "build"


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_gradients_are_clipped_at_any_precision(micro: Whisper, tmp_path: Path, precision: Any) -> None:
    norms: list[float] = []

    class Norms(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            gradients = [p.grad for p in pl_module.model.parameters() if p.grad is not None]
            norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    module = WhisperModule(micro, OPTIM, clip_norm=1e-3)
    run = trainer(tmp_path, max_steps=3, precision=precision, callbacks=[Norms()])
    run.fit(module, training(micro, 4, 3))
    assert norms == pytest.approx([1e-3] * 3, rel=1e-2)
    assert all(p.dtype == torch.float32 for p in micro.model.parameters())


def fp16() -> MixedPrecision:
    """As on a GPU: autocast to fp16, and a scaler."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))


def test_a_scaled_loss_has_the_gradients_of_an_unscaled_one(micro: Whisper, tmp_path: Path) -> None:
    kept = []
    for plugins in ([], [fp16()]):
        gradients = Gradients()
        module = WhisperModule(copy.deepcopy(micro), OPTIM, micro_batch_sizes={100: 3})
        trainer(tmp_path, max_steps=1, callbacks=[gradients], plugins=plugins).fit(module, training(micro, 4, 1))
        kept.append(gradients.first)
    for name, gradient in kept[0].items():
        torch.testing.assert_close(kept[1][name], gradient, rtol=0.05, atol=1e-3, msg=name)


def test_an_overflow_in_fp16_skips_the_step_and_halves_the_scale(micro: Whisper, tmp_path: Path) -> None:
    plugin = fp16()
    steps: list[tuple[bool, float, float]] = []

    class Overflow(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                self.hook = pl_module.model.proj_out.register_forward_hook(lambda m, i, output: output * torch.inf)
            elif batch_idx == 2:
                self.hook.remove()
            self.before = copy.deepcopy(pl_module.model.state_dict())

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            same = all(torch.equal(p, self.before[name]) for name, p in pl_module.model.state_dict().items())
            norm = torch.nn.utils.get_total_norm([p.grad for p in pl_module.parameters() if p.grad is not None])
            steps.append((same, plugin.scaler.get_scale(), float(norm)))  # type: ignore[union-attr]

    module = WhisperModule(micro, adamw(lr=1e-3, weight_decay=0.1, warmup_steps=0), clip_norm=1e-2)
    trainer(tmp_path, max_steps=3, callbacks=[Overflow()], plugins=[plugin]).fit(module, training(micro, 4, 3))
    assert [(same, scale) for same, scale, _ in steps] == [(False, 1024), (True, 512), (False, 512)]
    assert [norm for _, _, norm in steps[::2]] == pytest.approx([1e-2, 1e-2], rel=1e-3)


class Overflows(pl.Callback):
    """Makes the gradients overflow in some steps, counted from 0."""

    def __init__(self, steps: range) -> None:
        self.steps = steps

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step in self.steps:
            pl_module.model.proj_out.weight.grad.fill_(torch.inf)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.on_before_optimizer_step(trainer, pl_module, None)


@pytest.mark.parametrize(
    ("overflows", "steps", "warnings", "error"),
    [
        (range(0), 4, 0, None),
        (range(9), 12, 0, None),
        (range(2, 12), 14, 1, None),
        (range(3), 3, 0, "all 3 steps were skipped, so nothing was trained: gradients overflow in 16 bits"),
        (range(2, 60), 60, 1, "50 steps in a row were skipped, up to step 52: .* trainer.precision=bf16-mixed or 32"),
    ],
)
def test_steps_that_fp16_skips_are_reported(
    micro: Whisper,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    overflows: range,
    steps: int,
    warnings: int,
    error: str | None,
) -> None:
    run = trainer(tmp_path, max_steps=steps, callbacks=[Overflows(overflows)], plugins=[fp16()])
    with pytest.raises(Diverged, match=error) if error else nullcontext():
        run.fit(WhisperModule(micro, OPTIM), training(micro, 4, steps))
    assert caplog.text.count("10 steps in a row were skipped") == warnings


def test_an_optimizer_without_a_state_is_not_taken_for_one_that_never_stepped(micro: Whisper, tmp_path: Path) -> None:
    def sgd(model: Any, steps: float) -> Any:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer)

    trainer(tmp_path, max_steps=2).fit(WhisperModule(micro, sgd), training(micro, 4, 2))


def test_an_optimizer_state_that_does_not_fit_is_reported(
    micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **how: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    with pytest.raises(OutOfMemory, match=r"step 1: the optimizer's state does not fit .* model\.freeze=encoder"):
        trainer(tmp_path, max_steps=1).fit(WhisperModule(micro, OPTIM), training(micro, 4, 1))


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_with_ddp_a_step_that_does_not_fit_is_reported_even_in_one_process(
    micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    """The averaging of its gradients has begun, so that it cannot be repeated."""

    def too_much(model: Any, states: Any, labels: Any, *rest: Any) -> torch.Tensor:
        losses = clip_losses(model, states, labels, *rest)
        if len(labels) == 4:
            losses.sum().backward()
            raise torch.OutOfMemoryError("too much")
        return losses

    monkeypatch.setattr("kikitori.training.lightning_module.clip_losses", too_much)
    run = trainer(tmp_path, max_steps=2, devices=1, strategy=strategy, use_distributed_sampler=False)
    try:
        with pytest.raises(OutOfMemory, match="step 1: 4 clips") if strategy == "ddp" else nullcontext():
            run.fit(WhisperModule(micro, OPTIM), training(micro, 4, 2))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@pytest.mark.parametrize("key", ["encoder_layerdrop", "decoder_layerdrop"])
def test_layers_that_are_left_out_at_random_are_refused_on_several_devices(micro: Whisper, key: str) -> None:
    refuse_layerdrop(micro.model.config, 2)
    setattr(micro.model.config, key, 0.1)
    refuse_layerdrop(micro.model.config, 1)
    with pytest.raises(ConfigError, match=rf"model\.{key}=0\.1 is not supported on 2 devices: .* set it to 0"):
        refuse_layerdrop(micro.model.config, 2)


def test_each_epoch_has_an_order_of_its_own(micro: Whisper, tmp_path: Path) -> None:
    seen: list[str] = []

    class Order(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen.extend(batch["clips"])

    trainer(tmp_path, max_steps=8, callbacks=[Order()]).fit(WhisperModule(micro, OPTIM), training(micro, 1, 8))
    expected = [TEXTS[i] for epoch in (0, 1) for (i,) in epoch_batches([1.0] * 4, [100] * 4, 1, 0, epoch, False)]
    assert seen == expected
    assert seen[:4] != seen[4:]


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_step_that_does_not_fit_is_repeated_in_halves_with_the_same_result(
    micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, times: int
) -> None:
    undisturbed = WhisperModule(copy.deepcopy(micro), OPTIM)
    trainer(tmp_path, max_steps=2).fit(undisturbed, training(micro, 4, 2))
    seen = []

    def too_much(model: Any, states: Any, labels: Any, *rest: Any) -> torch.Tensor:
        seen.append(len(labels))
        if len(labels) > 4 // 2**times:
            # After a backward pass, whose gradients must not count twice.
            clip_losses(model, states, labels, *rest).sum().backward()
            raise torch.OutOfMemoryError("too much")
        return clip_losses(model, states, labels, *rest)

    monkeypatch.setattr("kikitori.training.lightning_module.clip_losses", too_much)
    module = WhisperModule(micro, OPTIM)
    run = trainer(tmp_path, max_steps=2)
    if times == 3:
        with pytest.raises(
            TrainingError, match=r"step 1: 1 clips of 100 frames at once do not fit .* data\.micro_batch_size=1"
        ):
            run.fit(module, training(micro, 4, 2))
        return
    run.fit(module, training(micro, 4, 2))
    assert seen == {1: [4, 2, 2, 2, 2], 2: [4, 2, *[1] * 8]}[times]
    assert caplog.text.count("do not fit into memory; micro-batches are half as large from here on") == times
    for name, weight in undisturbed.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], weight, atol=1e-5, rtol=1e-4)


def test_validation_runs_every_n_optimizer_steps_and_after_the_last(micro: Whisper, tmp_path: Path) -> None:
    recorder = TrainingHistory()
    run = trainer(
        tmp_path,
        max_steps=5,
        callbacks=[recorder, ValidateEvery(2)],
        check_val_every_n_epoch=None,
        val_check_interval=ValidateEvery.NEVER,
        num_sanity_val_steps=0,
    )
    run.fit(WhisperModule(micro, OPTIM), training(micro, 2, 5, clips=3), loader(micro, 4))
    assert [row["step"] for row in recorder.history] == [2, 4, 5]


def test_a_loss_that_is_not_finite_stops_the_run(micro: Whisper, tmp_path: Path) -> None:
    with torch.no_grad():
        micro.model.proj_out.weight.fill_(float("nan"))
    callbacks = [TrainingHistory(), ValidateEvery(1)]
    settings = {"check_val_every_n_epoch": None, "val_check_interval": ValidateEvery.NEVER, "num_sanity_val_steps": 0}
    run = trainer(tmp_path, max_steps=2, callbacks=callbacks, **settings)
    lr = OPTIM(micro.model, 2)[1].get_last_lr()[0]
    message = (
        rf"the loss of step 1 is nan, at a learning rate of {lr:.3g}, on the clips .* and 1 more; lower optim\.lr="
    )
    with pytest.raises(TrainingError, match=message):
        run.fit(WhisperModule(micro, OPTIM), training(micro, 4, 2), loader(micro, 4))


def test_scoring_leaves_a_loaded_model_in_training_mode(micro: Whisper, tmp_path: Path) -> None:
    """from_pretrained sets evaluation mode, in which dropout and gradient checkpointing would be off in training."""
    micro.save(tmp_path / "model")
    loaded = load_whisper(str(tmp_path / "model"), "ja", "transcribe")
    assert loaded.model.training
    trainer(tmp_path).predict(WhisperModule(loaded), loader(loaded, 4))
    assert all(module.training for module in loaded.model.modules())
