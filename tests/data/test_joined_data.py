"""Joined training examples as a data module serves them: equal for any number of workers, resumed or not."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from data_modules import common_voice, trainer_of
from recordings import common_voice_row, encoded, tone, write_tsv

from kikitori.audio.waveform import to_float
from kikitori.augmentation.settings import Augmentation
from kikitori.data.collate import IGNORE_INDEX, check_label_contract
from kikitori.data.datamodule import CommonVoice
from kikitori.data.sampler import SampledClip
from kikitori.joining.plan import Example, Placed
from kikitori.joining.settings import Joining
from kikitori.model.loading import build_whisper
from kikitori.model.whisper import Whisper
from kikitori.optim.optimizers import adamw
from kikitori.runtime.errors import ConfigError, DataError
from kikitori.training.history import clips_of_step
from kikitori.training.lightning_module import WhisperModule

JOINING = Joining(share=0.6, silence_s=(0.1, 0.3), timestamps=0.5, previous_text=0.5, non_speech=0.2)
CLIPS, STEPS = 10, 6


@pytest.fixture
def whisper() -> Whisper:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "max_label_tokens": 128}
    return build_whisper(**sizes, window_s=3, timestamps=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten training clips of two speakers, of 0.4 to 1.3 s."""
    folder = tmp_path_factory.mktemp("corpus")
    for split, numbers in (("train", range(CLIPS)), ("dev", range(10, 12)), ("test", range(12, 14))):
        rows = [common_voice_row(n, client_id=f"{split} {n % 2}") for n in numbers]
        write_tsv(folder / f"{split}.tsv", rows)
        for n in numbers:
            path = folder / "clips" / f"clip_{n}.mp3"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(encoded(tone(0.4 + 0.1 * n, 300 + 50 * n), "mp3"))
    return folder


def module(
    corpus: Path, whisper: Whisper, first: int = 0, processes: tuple[int, int] = (1, 0), **changes: Any
) -> CommonVoice:
    trainer = trainer_of(STEPS, *processes)
    trainer.global_step = first
    return common_voice(corpus, whisper, **{"trainer": trainer, "joining": JOINING, **changes})


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return same(list(a.values()), list(b.values())) if isinstance(a, dict) else bool(a == b)


def batches(corpus: Path, whisper: Whisper, **changes: Any) -> list[Any]:
    return list(module(corpus, whisper, **changes).train_dataloader())


def test_batches_are_equal_for_any_number_of_workers_and_resumed_midway(corpus: Path, whisper: Whisper) -> None:
    alone = batches(corpus, whisper)
    assert len(alone) == STEPS
    assert any(batch["decoder_input_ids"] is not None for batch in alone)
    for workers in (1, 4):
        assert same(batches(corpus, whisper, num_workers=workers), alone)
        assert same(batches(corpus, whisper, num_workers=workers, first=4), alone[4:])
    assert same(batches(corpus, whisper, first=3), alone[3:])
    assert not same(batches(corpus, whisper, seed=1), alone)


def test_processes_share_the_examples_and_their_tokens_count_the_same(corpus: Path, whisper: Whisper) -> None:
    alone = batches(corpus, whisper)
    shares = [batches(corpus, whisper, processes=(2, rank)) for rank in range(2)]
    for one, *parts in zip(alone, *shares, strict=True):
        real = [c for part in parts for c, w in zip(part["clips"], part["weights"], strict=True) if w > 0]
        assert sorted(real) == sorted(one["clips"])
        total = sum(float(part["weights"] @ torch.tensor(part["num_tokens"]).float()) for part in parts)
        assert total / 2 == pytest.approx(1)
        assert float(one["weights"] @ torch.tensor(one["num_tokens"]).float()) == pytest.approx(1)
        assert {part["step_clips"] for part in parts} == {one["step_clips"]}


def test_weights_are_those_of_the_labels(corpus: Path, whisper: Whisper) -> None:
    """The plan counts the tokens, the dataset writes them."""
    for batch in batches(corpus, whisper):
        check_label_contract(batch, whisper.processor)
        assert (batch["labels"] != IGNORE_INDEX).sum(dim=1).tolist() == batch["num_tokens"]
        assert batch["weights"].unique().item() == pytest.approx(1 / sum(batch["num_tokens"]))


@pytest.mark.parametrize("language", ["ja", "de"])
def test_the_plan_counts_the_tokens_that_the_dataset_writes(corpus: Path, whisper: Whisper, language: str) -> None:
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "max_label_tokens": 128}
    other = build_whisper(**sizes, window_s=3, timestamps=True, language=language)
    data = module(corpus, other)
    dataset, planner = data.dataset("train"), data.planner
    assert planner is not None
    for step in range(20):
        example = dataset[SampledClip(3, 1.0, example=planner(step, 3))]
        assert len(example["tokens"]) - example["prompt"] - 1 == planner(step, 3).num_tokens
        assert ("文 3 文" in example["text"]) <= (language == "de")


def test_without_joining_nothing_differs(corpus: Path, whisper: Whisper) -> None:
    plain = batches(corpus, whisper, joining=None)
    assert same(batches(corpus, whisper, joining=Joining()), plain)
    assert all(batch["decoder_input_ids"] is None for batch in plain)
    assert module(corpus, whisper, joining=Joining()).planner is None


def test_a_clip_that_is_not_joined_computes_the_same(corpus: Path, whisper: Whisper) -> None:
    """Its own window, samples, log-Mel and labels, to the bit."""
    data = module(corpus, whisper, window="bucketed")
    dataset, plain = data.dataset("train"), module(corpus, whisper, window="bucketed", joining=None).dataset("train")
    for clip in range(CLIPS):
        single = Example((Placed(clip, 0, 1),))
        one = dataset[SampledClip(clip, 0.5, False, 4, example=single)]
        assert one.pop("prompt") == 0
        other = plain[SampledClip(clip, 0.5, False, 4)]
        assert same({key: one[key] for key in other}, other)
        assert one["input_features"].shape[1] == dataset.windows()[clip]


def test_a_clip_that_is_not_joined_is_augmented_as_without_joining(corpus: Path, whisper: Whisper) -> None:
    """Its speed, too, unless its labels have times."""
    changed = {"augment": Augmentation(speed_prob=1.0, speed=(0.8, 0.9), gain_prob=1.0)}
    dataset, plain = (module(corpus, whisper, joining=j, **changed).dataset("train") for j in (JOINING, None))
    single = Example((Placed(3, 0, 1),))
    one, other = dataset[SampledClip(3, 0.5, step=7, example=single)], plain[SampledClip(3, 0.5, step=7)]
    assert same({key: one[key] for key in other}, other)
    assert other["seconds"] > module(corpus, whisper).prepared.durations_s("train")[3]
    for kept in (single._replace(stamped=True), single._replace(joined=True)):
        assert dataset[SampledClip(3, 0.5, step=7, example=kept)]["seconds"] <= other["seconds"] * 0.9


def test_an_epoch_begins_one_example_with_each_clip(corpus: Path, whisper: Whisper) -> None:
    data = module(corpus, whisper)
    assert data.steps_per_epoch == 3
    sampled = [draw for step in data.train_dataloader().sampler for draw in step]
    assert sorted(draw.clip_index for draw in sampled) == sorted(2 * list(range(CLIPS)))
    held = [draw.example.sentences for draw in sampled if draw.example]
    by_step = [sum(len(draw.example.sentences) for draw in step) for step in data.train_dataloader().sampler]
    found = list(data.train_dataloader())
    assert [clips_of_step(batch, 1) for batch in found] == by_step
    assert sum(by_step) == sum(map(len, held)) > len(sampled)
    seconds = sum(sum(batch["seconds"]) for batch in found)
    # Of joined windows with their silence.
    assert seconds > sum(2 * data.prepared.durations_s("train")[i] for i in range(CLIPS))


def test_joined_windows_hold_the_clips_samples_and_their_texts(corpus: Path, whisper: Whisper) -> None:
    data = module(corpus, whisper, joining=Joining(share=1, timestamps=1, previous_text=0, silence_s=(0.2, 0.2)))
    dataset, planner = data.dataset("train"), data.planner
    assert planner is not None
    plan = planner(0, 0)
    found = dataset[SampledClip(0, 1.0, example=plan)]
    waveform = torch.zeros(plan.samples(48_000))
    for clip, start, end in (*plan.sentences, *([plan.crossing] if plan.crossing else [])):
        waveform[start:end] = to_float(dataset.audio.pcm(dataset.clips[clip].name))[: end - start]
    assert found["input_features"].equal(whisper.processor.log_mel(waveform, full_window=True))
    assert found["text"] == "".join(dataset.clips[placed.clip].text for placed in plan.sentences)
    assert found["clip"].count("+") == len(plan.sentences) - 1
    assert len(plan.sentences) >= 2


def test_speakers_are_in_no_example(corpus: Path, whisper: Whisper) -> None:
    found = batches(corpus, whisper)
    assert "train 0" not in str([{k: v for k, v in batch.items() if k != "input_features"} for batch in found])


def test_what_is_trained_on_is_what_the_examples_hold(corpus: Path, whisper: Whisper) -> None:
    plain, joined = (module(corpus, whisper, joining=joining).trained_on() for joining in (None, JOINING))
    assert plain.keys() == {"longest_s", "p95_s", "density"}
    assert (joined["longest_s"], joined["non_speech"], joined["timestamps"]) == (3.0, 0.2, 0.5)
    assert joined["density"] == plain["density"]
    # Noise is no clip whose length a model learns to read.
    noisy = module(corpus, whisper, joining=Joining(non_speech=0.9)).trained_on()
    assert noisy["longest_s"] == plain["longest_s"]
    assert noisy["p95_s"] <= plain["longest_s"]


def test_a_model_trained_on_silence_may_write_nothing(corpus: Path, whisper: Whisper, tmp_path: Path) -> None:
    from kikitori.model.loading import load_whisper, rebuild_whisper

    end, config = whisper.processor.tokenizer.eos_token_id, whisper.model.generation_config
    assert end in config.begin_suppress_tokens
    before = list(config.begin_suppress_tokens)
    whisper.set_trained_on(module(corpus, whisper).trained_on())
    assert end not in config.begin_suppress_tokens
    whisper.save(tmp_path / "model")
    for again in (load_whisper(str(tmp_path / "model")), rebuild_whisper(whisper.recipe)):
        assert end not in again.model.generation_config.begin_suppress_tokens
        assert again.trained_on == whisper.trained_on
        assert again.processor.timestamp_begin == whisper.processor.timestamp_begin
    whisper.set_trained_on(module(corpus, whisper, joining=None).trained_on())
    assert config.begin_suppress_tokens == before


def test_the_windows_that_occur_are_known_for_their_batch_sizes(corpus: Path, whisper: Whisper) -> None:
    data = module(corpus, whisper, window="bucketed", joining=Joining(share=0.3, non_speech=0.5))
    found = {part.shape[2] for batch in data.train_dataloader() for part in batch["input_features"]}
    assert found <= data.window_frames() == {50, 80, 300}
    edges = range(0, 60_000, 40)
    window = data.model_processor().window
    assert window.all_frames(300) == {window.frames(samples, 300) for samples in edges}


def test_clips_that_cannot_be_joined_are_refused(corpus: Path, whisper: Whisper) -> None:
    short = build_whisper(d_model=16, encoder_layers=1, decoder_layers=1, max_label_tokens=128, window_s=1)
    with pytest.raises(ConfigError, match="no timestamps"):
        module(corpus, short, max_reject_rate=0.9).setup()
    with pytest.raises(ConfigError, match="cache_encoder_outputs=true keeps the outputs of single clips"):
        module(corpus, whisper, cache_encoder_outputs=True)
    long = module(corpus, whisper, min_duration_s=1.2, max_reject_rate=0.9, joining=Joining(share=0.5))
    long.setup()  # 1.2 and 1.3 s fit into 3 s


def test_labels_with_a_fault_name_their_clips(corpus: Path, whisper: Whisper) -> None:
    data = module(corpus, whisper)
    dataset = data.dataset("train")
    first, second = (dataset.audio.decoded[f"clip_{n}.mp3"].samples for n in range(2))
    sentences = (Placed(0, 16_000, 16_000 + first), Placed(1, 0, second), Placed(0, 30_000, 30_000 + first))
    broken = Example(sentences, joined=True, stamped=True)
    with pytest.raises(
        DataError, match=r"clip_0.mp3\+clip_1.mp3\+clip_0.mp3: the timestamps of the labels do not ascend"
    ):
        dataset[SampledClip(0, 1.0, example=broken)]


def test_training_takes_steps_with_prompts_and_logs_the_clips(corpus: Path, whisper: Whisper, tmp_path: Path) -> None:
    data = common_voice(corpus, whisper, joining=JOINING)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(
        default_root_dir=tmp_path, max_steps=4, limit_val_batches=0, enable_checkpointing=False, **quiet
    )
    before = {name: p.clone() for name, p in whisper.model.named_parameters()}
    trainer.fit(WhisperModule(whisper, adamw(lr=1e-3)), datamodule=data)
    assert trainer.global_step == 4
    assert any(not p.equal(before[name]) for name, p in whisper.model.named_parameters())
    assert whisper.trained_on is not None
    assert whisper.trained_on["timestamps"] == 0.5
