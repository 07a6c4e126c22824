"""kikitori in a notebook: its data modules and its LightningModule under a plain `pl.Trainer`."""

import copy
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from recordings import write_common_voice
from training_runs import trainer

import kikitori
from kikitori.data.collate import collate
from kikitori.inference.generate import Generated
from kikitori.model.whisper import Whisper, encode
from kikitori.runtime.errors import ConfigError, DataError, ModelError
from kikitori.training.loss import clip_losses
from kikitori.training.trainer import refuse_unsupported

TRAIN, STEPS_PER_EPOCH = 10, 3
pytestmark = pytest.mark.filterwarnings("ignore")


class Seen(pl.Callback):
    """Notes the clips, weights and input shapes of every training step, and the steps at which was validated."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.clips: list[list[str]] = []
        self.shapes: list[list[tuple[int, ...]]] = []
        self.validated: list[int] = []
        self.stop_after = stop_after

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.clips.append(batch["clips"])
        self.shapes.append([tuple(part.shape) for part in batch["encoder_states"] or batch["input_features"]])
        trainer.should_stop |= trainer.global_step == self.stop_after

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validated += [] if trainer.sanity_checking else [trainer.global_step]

    def epochs(self) -> list[list[str]]:
        """The clips of each pass over the corpus, sorted."""
        starts = range(0, len(self.clips), STEPS_PER_EPOCH)
        return [sorted(clip for step in self.clips[i : i + STEPS_PER_EPOCH] for clip in step) for i in starts]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_common_voice(tmp_path_factory.mktemp("release") / "ja", {"train": TRAIN, "dev": 4, "test": 3})


def common_voice(release: Path, whisper: Whisper, **settings: Any) -> kikitori.CommonVoice:
    defaults = {"processor": whisper.processor, "num_workers": 0, "global_batch_size": 4}
    return kikitori.CommonVoice(str(release), **{**defaults, **settings})


def module(whisper: Whisper, **settings: Any) -> kikitori.WhisperModule:
    return kikitori.WhisperModule(whisper, kikitori.adamw(lr=1e-3, warmup_steps=1, **settings))


def fit(
    release: Path, whisper: Whisper, folder: Path, data: Any = None, ckpt_path: str | None = None, **settings: Any
) -> tuple[pl.Trainer, Seen]:
    """Trains a copy of the model."""
    seen = Seen(settings.pop("stop_after", None))
    run = trainer(folder, callbacks=[seen, *settings.pop("callbacks", [])], **settings)
    run.fit(module(copy.deepcopy(whisper)), data or common_voice(release, whisper), ckpt_path=ckpt_path)
    return run, seen


def learning_rate(run: pl.Trainer) -> float:
    return run.optimizers[0].param_groups[0]["lr"]


def test_max_steps_ends_in_the_middle_of_an_epoch_and_each_epoch_is_validated(
    release: Path, micro: Whisper, tmp_path: Path
) -> None:
    run, seen = fit(release, micro, tmp_path, max_steps=7)
    assert (run.global_step, len(seen.clips)) == (7, 7)
    everything = [f"clip_{i}.mp3" for i in range(TRAIN)]
    assert seen.epochs()[:2] == [everything] * 2
    assert seen.clips[:3] != seen.clips[3:6]
    assert seen.validated[:2] == [3, 6]
    assert learning_rate(run) == 0


def test_max_epochs_reads_each_clip_once_an_epoch_and_ends_the_schedule(
    release: Path, micro: Whisper, tmp_path: Path
) -> None:
    run, seen = fit(release, micro, tmp_path, max_epochs=2)
    assert (run.global_step, run.current_epoch) == (6, 2)
    assert seen.epochs() == [sorted(f"clip_{i}.mp3" for i in range(TRAIN))] * 2
    assert seen.validated == [3, 6]
    assert learning_rate(run) == 0


def test_steps_and_epochs_read_the_clips_in_the_order_of_kikitori_train(
    release: Path, micro: Whisper, tmp_path: Path
) -> None:
    as_command = {"check_val_every_n_epoch": None, "val_check_interval": 5}
    orders = [
        fit(release, micro, tmp_path, max_steps=6, **how)[1].clips
        for how in ({}, as_command, {"max_epochs": 9}, {**as_command, "max_epochs": 9})
    ]
    assert orders[0] == orders[1] == orders[2] == orders[3]


def test_a_plain_trainer_trains_until_it_is_stopped(release: Path, micro: Whisper, tmp_path: Path) -> None:
    run, seen = fit(release, micro, tmp_path, stop_after=4)
    assert run.global_step == 4
    # Its schedule is that of Lightning's default of 1,000 epochs.
    assert learning_rate(run) == pytest.approx(1e-3 * (3000 - 4) / (3000 - 1))
    assert Counter(seen.epochs()[0]) == Counter(f"clip_{i}.mp3" for i in range(TRAIN))


def test_limited_batches_of_an_epoch_are_not_those_of_the_one_before(
    release: Path, micro: Whisper, tmp_path: Path
) -> None:
    run, seen = fit(release, micro, tmp_path, max_epochs=2, limit_train_batches=2)
    _, whole = fit(release, micro, tmp_path, max_steps=4)
    assert seen.clips == whole.clips
    assert (run.global_step, learning_rate(run)) == (4, 0)


@pytest.mark.parametrize(("limit", "per_epoch"), [(0.5, 1), (0.7, 2), (1.0, 3), (2, 2), (9, 3)])
def test_a_limit_of_batches_applies_once_and_ends_the_schedule(
    release: Path, micro: Whisper, tmp_path: Path, limit: float, per_epoch: int
) -> None:
    run, seen = fit(release, micro, tmp_path, max_epochs=2, limit_train_batches=limit)
    assert (run.global_step, run.current_epoch, learning_rate(run)) == (2 * per_epoch, 2, 0)
    assert seen.validated == [per_epoch, 2 * per_epoch]


def test_half_the_batches_of_an_epoch_are_half_of_its_steps(release: Path, micro: Whisper, tmp_path: Path) -> None:
    data = common_voice(release, micro, global_batch_size=2, num_workers=1)
    run, seen = fit(release, micro, tmp_path, data, max_epochs=2, limit_train_batches=0.6)
    whole = fit(release, micro, tmp_path, data, max_steps=6)[1]
    assert (run.global_step, learning_rate(run)) == (6, 0)
    assert seen.clips == whole.clips
    with pytest.raises(MisconfigurationException, match=r"0\.1 \* 5 < 1\. .* Try at least `limit_train_batches=0\.2`"):
        fit(release, micro, tmp_path, data, max_epochs=2, limit_train_batches=0.1)


def test_fast_dev_run_takes_one_step(release: Path, micro: Whisper, tmp_path: Path) -> None:
    run, seen = fit(release, micro, tmp_path, fast_dev_run=True)
    assert (run.global_step, seen.validated) == (1, [1])


def test_validate_test_and_predict_take_the_data_module(release: Path, micro: Whisper, tmp_path: Path) -> None:
    run, data, whisper_module = trainer(tmp_path), common_voice(release, micro), kikitori.WhisperModule(micro)
    (validated,) = run.validate(whisper_module, data, verbose=False)
    (tested,) = run.test(whisper_module, data, verbose=False)
    assert set(validated) == {"val/loss", "val/cer", "val/wer", "val/cut"}
    assert set(tested) == {"test/loss", "test/cer", "test/wer", "test/cut"}
    batches: Any = run.predict(whisper_module, data)
    rows = [row for batch in batches for row in batch]
    assert sorted((clip, reference) for clip, reference, *_ in rows) == [
        (c.name, c.text) for c in sorted(data.clips["test"], key=lambda clip: clip.name)
    ]
    rates = kikitori.score([row[1] for row in rows], [row[2] for row in rows])
    assert (rates["cer"], rates["wer"]) == pytest.approx((tested["test/cer"], tested["test/wer"]))


def test_a_bucketed_window_reaches_the_batches_the_model_its_checkpoint_and_transcripts(
    release: Path,
    micro: Whisper,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    buckets: dict[str, Any] = {"window": "bucketed", "window_edges_s": [0.6, 0.8], "window_margin_s": 0.05}
    caplog.set_level("INFO", "kikitori")
    data, tuned = common_voice(release, micro, **buckets, full_window_share=0.5), module(micro)
    seen, kept = Seen(), ModelCheckpoint(tmp_path)
    trainer(tmp_path, max_steps=4, callbacks=[seen, kept], enable_checkpointing=True).fit(tuned, data)
    assert [shape[2] for shapes in seen.shapes for shape in shapes] == [60, 100, 60, 100]
    assert tuned.whisper.processor.window.edges_s == (0.6, 0.8)
    again = kikitori.WhisperModule.load_from_checkpoint(kept.best_model_path)
    assert again.processor.window == tuned.processor.window
    positions: list[int] = []

    def generate(whisper: Whisper, states: torch.Tensor, seconds: Any, stop_loops: bool) -> list[Generated]:
        positions.append(states.shape[1])
        return [Generated("犬", cut=False)]

    monkeypatch.setattr("kikitori.inference.generate.generate", generate)
    assert tuned.whisper is micro
    assert kikitori.transcribe(micro, release / "clips/clip_0.mp3") == "犬"
    assert positions == [30]
    assert caplog.text.count("clips are padded to the first of 0.6, 0.8 s") == 1


def test_a_micro_batch_size_splits_a_step_and_not_its_gradient(
    release: Path, micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []

    def counted(model: Any, states: torch.Tensor, labels: torch.Tensor, *rest: Any) -> torch.Tensor:
        computed.append(len(labels))
        return clip_losses(model, states, labels)

    monkeypatch.setattr("kikitori.training.lightning_module.clip_losses", counted)
    losses = []
    for size, parts in ((None, [4, 4, 2]), (3, [3, 1, 3, 1, 2])):
        data = common_voice(release, micro, micro_batch_size=size)
        run, _ = fit(release, micro, tmp_path, data, max_steps=3, limit_val_batches=0)
        assert computed == parts
        losses.append(float(run.callback_metrics["train/loss"]))
        computed.clear()
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_cached_encoder_outputs_are_computed_once_for_each_model(
    release: Path, micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIKITORI_CACHE", str(tmp_path / "cache"))
    micro.model.model.encoder.requires_grad_(False)
    uncached = fit(release, micro, tmp_path, max_epochs=1)[0]
    data = common_voice(release, micro, cache_encoder_outputs=True)
    other, passes = copy.deepcopy(micro), []
    for whisper in (micro, other):
        whisper.model.model.encoder.layers[0].register_forward_hook(lambda *arguments: passes.append(1))
    with torch.no_grad():
        other.model.model.encoder.conv1.weight.add_(1.0)
    first = trainer(tmp_path, max_epochs=1, callbacks=[seen := Seen()])
    first.fit(module(micro), data)
    assert {shape[1:] for shapes in seen.shapes for shape in shapes} == {(50, 32)}
    assert len(passes) == 3
    assert len(list((tmp_path / "cache/encoder").glob("*.states"))) == 3
    losses = [float(run.callback_metrics["val/loss"]) for run in (first, uncached)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    first.validate(module(micro), data, verbose=False)
    assert len(passes) == 3
    # Another model's outputs are its own.
    trainer(tmp_path).validate(module(other), data, verbose=False)
    assert len(list((tmp_path / "cache/encoder").glob("*.states"))) == 6
    features = data.prepared.audio_caches["validation"]
    name = data.clips["validation"][0].name
    log_mel = micro.processor.log_mel(torch.from_numpy(features.pcm(name).astype("float32")) / 32_768)
    expected = encode(other.model.eval(), log_mel[None])[0]
    torch.testing.assert_close(data.dataset("validation")[0]["encoder_states"], expected)


def test_encoder_outputs_are_not_reused_after_the_encoder_was_trained(
    release: Path, micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIKITORI_CACHE", str(tmp_path / "cache"))
    encoder = micro.model.model.encoder.requires_grad_(False)
    data = common_voice(release, micro, cache_encoder_outputs=True)
    trainer(tmp_path, max_steps=1).fit(module(micro), data)
    encoder.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"needs an encoder that is not trained; add model\.freeze=encoder"):
        trainer(tmp_path, max_steps=1).fit(module(micro), data)
    trainer(tmp_path, max_steps=2).fit(module(micro), common_voice(release, micro))
    encoder.requires_grad_(False)
    trainer(tmp_path, max_steps=1).fit(module(micro), data)
    assert len(list((tmp_path / "cache/encoder").glob("*.states"))) == 6
    name = data.clips["validation"][0].name
    log_mel = micro.processor.log_mel(torch.from_numpy(data.prepared.audio_caches["validation"].pcm(name)) / 32_768)
    expected = encode(micro.model.eval(), log_mel[None])[0]
    torch.testing.assert_close(data.dataset("validation")[0]["encoder_states"], expected)


def test_a_loader_of_ones_own_weighs_every_token_alike(release: Path, micro: Whisper, tmp_path: Path) -> None:
    dataset: Any = common_voice(release, micro).dataset("train")
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, collate_fn=collate)
    stock, tuned = copy.deepcopy(micro.model).eval(), module(micro)
    run = trainer(tmp_path, max_steps=1)
    run.fit(tuned, loader)
    batch = collate([dataset[i] for i in range(4)])
    with torch.no_grad():
        expected = stock(input_features=batch["input_features"][0], labels=batch["labels"]).loss
    assert float(run.callback_metrics["train/loss"]) == pytest.approx(float(expected), rel=1e-5)
    more = trainer(tmp_path, max_epochs=2)
    (before,) = more.validate(tuned, loader, verbose=False)
    more.fit(tuned, loader)
    (after,) = more.validate(tuned, loader, verbose=False)
    assert (more.global_step, learning_rate(more)) == (6, 0)
    assert after["val/loss"] < before["val/loss"]


def weights(path: str) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize("resumed_at", [2, 3, 4])
@pytest.mark.parametrize(("limits", "workers"), [({"max_epochs": 3}, 0), ({"max_epochs": 3}, 1), ({"max_steps": 8}, 0)])
def test_a_training_resumed_from_a_checkpoint_ends_like_one_that_was_not_interrupted(
    release: Path, micro: Whisper, tmp_path: Path, resumed_at: int, limits: dict[str, int], workers: int
) -> None:
    data = common_voice(release, micro, num_workers=workers)
    kept = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    whole, seen = fit(release, micro, tmp_path, data, callbacks=[kept], enable_checkpointing=True, **limits)
    last = ModelCheckpoint(tmp_path / "resumed", "{step}", every_n_train_steps=1, save_top_k=-1)
    checkpoint = str(tmp_path / f"step={resumed_at}.ckpt")
    resumed, rest = fit(
        release, micro, tmp_path, data, checkpoint, callbacks=[last], enable_checkpointing=True, **limits
    )
    assert resumed.global_step == whole.global_step
    assert rest.clips == seen.clips[resumed_at:]
    steps = whole.global_step
    one, other = weights(str(tmp_path / f"step={steps}.ckpt")), weights(str(tmp_path / f"resumed/step={steps}.ckpt"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_checkpoint_loads_without_arguments_and_trains_on(release: Path, micro: Whisper, tmp_path: Path) -> None:
    run, _ = fit(release, micro, tmp_path, max_steps=2, enable_checkpointing=True)
    path = run.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    loaded = kikitori.WhisperModule.load_from_checkpoint(path)
    assert all(torch.equal(value, weights(path)[f"{name}"]) for name, value in loaded.state_dict().items())
    assert loaded.whisper.model.generation_config.max_new_tokens == 12
    tuned = kikitori.WhisperModule.load_from_checkpoint(path, make_optimizer=kikitori.adamw(lr=1e-3, warmup_steps=0))
    trainer(tmp_path, max_steps=1).fit(tuned, common_voice(release, loaded.whisper))
    assert not torch.equal(tuned.model.proj_out.weight, weights(path)["model.proj_out.weight"])


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"gradient_clip_val": 0.5},
        r"gradient_clip_val=0\.5\) is not supported: .*WhisperModule\(\.\.\., clip_norm=0\.5\)",
    ),
    (
        {"accumulate_grad_batches": 2},
        r"accumulate_grad_batches=2\) is not supported: .* set the data's global_batch_size",
    ),
    ({"overfit_batches": 1}, r"overfit_batches=1\) is not supported: .* limit=\{'train': 8\}"),
    (
        {"precision": "16-true"},
        r'precision="16-true"\) is not supported: .* pass "16-mixed", "bf16-mixed" or "32-true"',
    ),
    ({"precision": "bf16-true"}, r'precision="bf16-true"\) is not supported: '),
    ({"precision": "64-true"}, r'precision="64-true"\) is not supported: '),
    ({"max_epochs": -1}, r"schedule='linear' needs a last step, .* or use schedule='constant'"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_is_not_supported_is_one_line_before_training(
    release: Path, micro: Whisper, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        fit(release, micro, tmp_path, stop_after=2, **arguments)
    assert "\n" not in str(refusal.value)


def test_a_precision_without_fp32_weights_is_refused_for_scoring_too(
    release: Path, micro: Whisper, tmp_path: Path
) -> None:
    run = trainer(tmp_path, precision="bf16-true")
    with pytest.raises(ConfigError, match="is not supported: the model's weights stay in fp32"):
        run.test(module(micro), common_voice(release, micro))
    assert micro.model.dtype == torch.float32


def test_a_sharded_strategy_is_refused() -> None:
    class ShardedStrategy(pl.strategies.DDPStrategy):
        pass

    sharded: Any = SimpleNamespace(strategy=ShardedStrategy())
    with pytest.raises(ConfigError, match=r'ShardedStrategy is not supported: .* pass Trainer\(strategy="ddp"\)'):
        refuse_unsupported(sharded)


def test_a_training_without_end_takes_a_constant_schedule(release: Path, micro: Whisper, tmp_path: Path) -> None:
    run = trainer(tmp_path, max_epochs=-1, callbacks=[Seen(stop_after=4)])
    run.fit(module(micro, schedule="constant"), common_voice(release, micro))
    assert (run.global_step, learning_rate(run)) == (4, 1e-3)


def test_a_misspelt_value_is_named(release: Path, micro: Whisper) -> None:
    with pytest.raises(ConfigError, match=r"data\.limit has no trian; its keys are train, validation, test and sample"):
        common_voice(release, micro, limit={"trian": 8})
    with pytest.raises(ConfigError, match=r"data\.window=short: must be full, bucketed or None"):
        common_voice(release, micro, window="short")
    with pytest.raises(ConfigError, match=r"optim\.schedule=step: must be linear, constant, cosine or wsd"):
        kikitori.adamw(schedule="step")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"model\.freeze=decoder: must be encoder or none"):
        kikitori.build_whisper(freeze="decoder")  # type: ignore[arg-type]


def test_what_is_missing_is_named_before_training(release: Path, micro: Whisper, tmp_path: Path) -> None:
    run, data = trainer(tmp_path, max_steps=1), common_voice(release, micro)
    with pytest.raises(ConfigError, match=r"has no optimizer; pass one: WhisperModule\(whisper, kikitori\.adamw"):
        run.fit(kikitori.WhisperModule(micro), data)
    with pytest.raises(ConfigError, match=r"CommonVoice has no processor; .*processor=whisper\.processor"):
        run.fit(module(micro), common_voice(release, micro, processor=None))
    with pytest.raises(ConfigError, match=r"WhisperModule has no model; pass one, such as kikitori\.load_whisper"):
        kikitori.WhisperModule()
    with pytest.raises(ConfigError, match=r"needs an encoder that is not trained; add model\.freeze=encoder"):
        run.fit(module(micro), common_voice(release, micro, cache_encoder_outputs=True))
    with pytest.raises(DataError, match=r"data\.release=nowhere does not exist"):
        run.fit(module(micro), common_voice(Path("nowhere"), micro))
    english = kikitori.build_whisper(32, 1, 1, 2, 1, language="en", max_label_tokens=64)
    with pytest.raises(ConfigError, match=r"made for another model \(language ja and en\); .*with_processor"):
        run.fit(module(english), data)
    other = kikitori.build_whisper(32, 1, 1, 2, window_s=2, max_label_tokens=64)
    with pytest.raises(ConfigError, match=r"another model \(frames 100 and 200\)"):
        run.fit(module(other), data)
    trainer(tmp_path, max_steps=1).fit(module(other), data.with_processor(other.processor))
