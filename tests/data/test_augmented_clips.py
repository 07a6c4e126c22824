"""Augmentation in the loader: the same examples for any number of workers and processes, resumed or not."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_modules import common_voice, trainer_of
from recordings import encoded, tone, write_clip, write_common_voice

from kikitori.augmentation.settings import Augmentation
from kikitori.data.collate import Batch
from kikitori.data.datamodule import CommonVoice
from kikitori.data.preparation import Sounds, decode_sounds
from kikitori.data.sampler import SampledClip
from kikitori.model.whisper import Whisper
from kikitori.model.window import Window
from kikitori.runs.resume import check_data
from kikitori.runtime.errors import ConfigError, DataError

PROBABILITIES = {f"{name}_prob": 0.5 for name in ("speed", "room", "noise", "gain", "telephone", "mu_law", "mp3")}
STEPS = 6


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_common_voice(tmp_path_factory.mktemp("corpus") / "ja", {"train": 10, "dev": 2, "test": 2})
    for number in range(10):
        write_clip(folder / "clips" / f"clip_{number}.mp3", 200.0 + 40 * number, 0.4 + 0.05 * number)
    return folder


@pytest.fixture
def sounds(tmp_path: Path) -> dict[str, str]:
    """Folders of noise and of rooms, with short and long recordings of several formats and sampling rates."""
    noise, rooms = tmp_path / "noise", tmp_path / "rooms"
    (noise / "deep").mkdir(parents=True)
    rooms.mkdir()
    (noise / "LICENSE.txt").write_text("no recording")
    (noise / "short.wav").write_bytes(encoded(tone(0.1, 900)))
    (noise / "deep" / "long.flac").write_bytes(encoded(tone(3, 1_000, 44_100), "flac", 44_100))
    (rooms / "hall.wav").write_bytes(encoded(tone(0.3, 50) * np.exp(-np.arange(4_800) / 500)))
    return {"noise_folder": str(noise), "room_folder": str(rooms)}


def augmented(corpus: Path, micro: Whisper, sounds: dict[str, str], **changes: Any) -> CommonVoice:
    settings = {"full_window_share": 0.5, "trainer": trainer_of(STEPS), **changes}
    return common_voice(corpus, micro, augment=Augmentation(**PROBABILITIES, **sounds), **settings)


def examples(batches: Any) -> list[dict[str, Any]]:
    """The examples of each step."""
    return [step(batch) for batch in batches]


def step(batch: Batch) -> dict[str, Any]:
    """Shape, bytes, transcript, labels and seconds of each clip of a batch."""
    rows = [features for window in batch["input_features"] for features in window]
    labels = [row[row >= 0].tolist() for row in batch["labels"]]
    found = zip(batch["clips"], rows, batch["texts"], labels, batch["seconds"], strict=True)
    return {name: (features.shape, features.numpy().tobytes(), *rest) for name, features, *rest in found}


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
def test_examples_do_not_depend_on_workers(corpus: Path, micro: Whisper, sounds: dict[str, str]) -> None:
    loaded = [
        examples(augmented(corpus, micro, sounds, num_workers=workers).train_dataloader()) for workers in (0, 1, 4)
    ]
    assert len(loaded[0]) == STEPS
    assert loaded[0] == loaded[1] == loaded[2]


def test_examples_do_not_depend_on_processes(corpus: Path, micro: Whisper, sounds: dict[str, str]) -> None:
    alone = examples(augmented(corpus, micro, sounds).train_dataloader())
    ranks = [augmented(corpus, micro, sounds, trainer=trainer_of(STEPS, 2, rank)) for rank in (0, 1)]
    shares = zip(*(examples(data.train_dataloader()) for data in ranks), strict=True)
    # A clip of weight 0 that only fills up a batch counts no seconds.
    assert [{name: row[:4] for name, row in (one | two).items()} for one, two in shares] == [
        {name: row[:4] for name, row in rows.items()} for rows in alone
    ]


def test_a_resumed_training_has_the_examples_of_an_uninterrupted_one(
    corpus: Path, micro: Whisper, sounds: dict[str, str]
) -> None:
    trainer = trainer_of(STEPS)
    trainer.global_step = 4
    resumed = augmented(corpus, micro, sounds, trainer=trainer, num_workers=1)
    assert examples(resumed.train_dataloader()) == examples(augmented(corpus, micro, sounds).train_dataloader())[4:]


def test_a_spawned_worker_gets_the_same_augmentation(corpus: Path, micro: Whisper, sounds: dict[str, str]) -> None:
    dataset = augmented(corpus, micro, sounds).dataset("train")
    copied, sampled = pickle.loads(pickle.dumps(dataset)), SampledClip(3, 1.0, step=7)
    assert torch.equal(copied[sampled]["input_features"], dataset[sampled]["input_features"])
    assert not torch.equal(dataset[sampled]["input_features"], dataset[3]["input_features"])


def test_a_clip_differs_from_epoch_to_epoch_and_with_the_seed(
    corpus: Path, micro: Whisper, sounds: dict[str, str]
) -> None:
    def seen(**changes: Any) -> dict[str, set[bytes]]:
        rows: dict[str, set[bytes]] = {}
        for batch in examples(augmented(corpus, micro, sounds, full_window_share=1.0, **changes).train_dataloader()):
            for name, (_, features, *_) in batch.items():
                rows.setdefault(name, set()).add(features)
        return rows

    first, other = seen(), seen(seed=1)
    assert sum(len(rows) for rows in first.values()) > 17  # of 20: both epochs may leave a clip as it is
    assert sum(len(first[name] & other[name]) for name in first) < 4


def test_only_training_steps_are_augmented(corpus: Path, micro: Whisper, sounds: dict[str, str]) -> None:
    """Not validation and test, and not the training clips when they are scored."""
    plain, data = common_voice(corpus, micro), augmented(corpus, micro, sounds)
    for split in ("train", "validation", "test"):
        before, now = (examples(module.score_dataloader(split)) for module in (plain, data))
        assert before == now
    assert data.dataset("validation").augmenter is None
    assert step(data.first_batch("train")) == step(plain.first_batch("train"))
    assert examples(data.train_dataloader()) != examples(plain.train_dataloader())


def test_transcripts_stay_and_durations_follow(corpus: Path, micro: Whisper) -> None:
    data = common_voice(corpus, micro, augment=Augmentation(speed_prob=1.0, speed=(0.5, 0.5)), trainer=trainer_of(3))
    lengths = dict(zip((clip.name for clip in data.clips["train"]), data.dataset("train").durations_s(), strict=True))
    texts = {clip.name: clip.text for clip in data.clips["train"]}
    for batch in data.train_dataloader():
        assert batch["texts"] == [texts[name] for name in batch["clips"]]
        for name, seconds in zip(batch["clips"], batch["seconds"], strict=True):
            assert seconds == pytest.approx(min(2 * lengths[name], 1), abs=0.01)  # the window is 1 s


def test_every_window_of_a_changed_clip_is_known_before(corpus: Path, micro: Whisper) -> None:
    """Micro-batches have a size for each window."""
    micro.set_window(Window((0.4, 0.5, 0.6, 0.7, 0.8, 0.9), 0.1))
    fast = Augmentation(speed_prob=1.0, speed=(0.8, 1.9))
    data = common_voice(corpus, micro, augment=fast, trainer=trainer_of(30))
    frames = {features.shape[2] for batch in data.train_dataloader() for features in batch["input_features"]}
    assert 40 in frames  # of no clip as it is: they have 0.4 s and more, and a margin
    assert frames <= data.window_frames()
    assert 40 not in common_voice(corpus, micro).window_frames()


def test_augmentation_and_cached_encoder_outputs_exclude_each_other(corpus: Path, micro: Whisper) -> None:
    with pytest.raises(ConfigError, match=r"cache_encoder_outputs: cannot be used with augmentation"):
        common_voice(corpus, micro, augment=Augmentation(gain_prob=0.1), cache_encoder_outputs=True)
    assert common_voice(corpus, micro, augment=Augmentation(), cache_encoder_outputs=True)


def test_noise_is_decoded_at_any_rate_once_and_counted(
    corpus: Path, micro: Whisper, sounds: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = augmented(corpus, micro, sounds)
    data.setup()
    facts = data.summary()["augmentation"]
    assert {name: (row["recordings"], row["seconds"], row["left_out"]) for name, row in facts.items()} == {
        "noise_folder": (2, 3.1, {}),
        "room_folder": (1, 0.3, {}),
    }
    monkeypatch.setattr("kikitori.data.audio_cache._write", lambda *_: pytest.fail("decoded again"))
    again = augmented(corpus, micro, sounds)
    again.setup()
    assert again.summary() == data.summary()
    assert "augmentation" not in common_voice(corpus, micro).summary()


def decoded(folder: str, key: str = "noise_folder", rate: float = 0.5) -> Sounds:
    return decode_sounds(Path(folder), key, (), rate)


def test_a_broken_file_is_left_out_and_named(sounds: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    folder = Path(sounds["noise_folder"])
    (folder / "deep" / "broken.wav").write_bytes(b"no audio")
    found = decoded(str(folder))
    assert found.names == ["deep/long.flac", "short.wav"]
    assert list(found.left_out) == ["deep/broken.wav"]
    assert "augment.noise_folder: 1 of 3 recordings cannot be used: deep/broken.wav (is in no format" in caplog.text
    assert "augmentation leaves them out" in caplog.text
    with pytest.raises(DataError, match=r"1 of 3 .*deep/broken.wav .*; remove or repair them, or raise data.max_rej"):
        decoded(str(folder), rate=0.05)


@pytest.mark.parametrize(
    ("key", "name", "audio", "fault"),
    [
        ("room_folder", "silent.wav", encoded(np.zeros(8_000)), "is silent"),
        ("room_folder", "click.wav", encoded(np.full(8_000, 3e-5)), "is silent"),
        ("noise_folder", "silent.wav", encoded(np.zeros(8_000)), "is silent"),
        ("noise_folder", "empty.wav", encoded(np.zeros(0)), "is silent"),
        ("room_folder", "song.mp3", encoded(tone(11), "mp3"), "is longer than 10 s: no impulse response"),
        ("noise_folder", "cut.mp3", encoded(tone(2), "mp3")[:-900], "the file is cut short"),
        ("noise_folder", "phone.m4a", b"\0\0\0\x20ftypM4A ", "is MP4 or M4A, which cannot be decoded"),
    ],
)
def test_a_folder_without_a_usable_recording_is_an_error(
    tmp_path: Path, key: str, name: str, audio: bytes, fault: str
) -> None:
    folder = tmp_path / "sounds"
    folder.mkdir()
    (folder / name).write_bytes(audio)
    with pytest.raises(DataError, match=rf"augment.{key}: 1 of 1 recordings cannot be used: {name} \({fault}"):
        decoded(str(folder), key, rate=1.0)


def test_an_empty_folder_is_an_error_before_a_model_is_loaded(
    corpus: Path, micro: Whisper, sounds: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    data = augmented(corpus, micro, sounds | {"room_folder": str(tmp_path / "empty")})
    with pytest.raises(DataError, match=r"augment.room_folder=\S*empty: holds no recordings \(.mp3, .wav"):
        data.load_corpus()


def test_a_link_out_of_a_folder_is_not_followed(tmp_path: Path, sounds: dict[str, str]) -> None:
    private = write_clip(tmp_path / "private" / "diary.wav")
    folder = Path(sounds["noise_folder"])
    (folder / "link.wav").symlink_to(private)
    (folder / "more").symlink_to(private.parent)
    found = decoded(str(folder))
    assert found.left_out == {"link.wav": "lies outside of noise/"}
    assert len(found) == 2
    assert decode_sounds(folder, "noise_folder", [str(private.parent)], 0.0).names[-2:] == ["link.wav", "short.wav"]


def test_a_resumed_run_refuses_other_noise(corpus: Path, micro: Whisper, sounds: dict[str, str]) -> None:
    data = augmented(corpus, micro, sounds)
    data.setup()
    results: Any = {"data": json.loads(json.dumps(data.summary()))}
    check_data(results, data.summary(), [], corpus)
    write_clip(Path(sounds["noise_folder"]) / "new.wav")
    changed = augmented(corpus, micro, sounds)
    changed.setup()
    with pytest.raises(ConfigError, match=r"data \(noise_folder\): recordings have changed: 2 recordings then, 3 now"):
        check_data(results, changed.summary(), [], corpus)
    check_data(results, changed.summary(), ["data"], corpus)
