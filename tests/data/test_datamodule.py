import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from data_modules import ALL, LOADING, common_voice, trainer_of
from recordings import common_voice_row, encoded, tone, write_clip, write_common_voice, write_csv, write_tsv

from kikitori.audio.decoder_pool import Decoders
from kikitori.audio.waveform import decode, to_int16
from kikitori.data.collate import check_label_contract
from kikitori.data.datamodule import Demo, Manifest, SpeechDataModule
from kikitori.model.processor import Processor
from kikitori.model.whisper import Whisper
from kikitori.model.window import Window
from kikitori.runtime.errors import DataError
from kikitori.runtime.files import write_lines

SPLITS = {"train": 10, "dev": 4, "test": 2}
AUDIO = encoded(tone(hertz=5000), "mp3")
# The fault of a row of the training table, the cells that cause it, and the bytes of its file.
BAD: list[tuple[str, dict[str, str], bytes]] = [
    ("missing", {"path": "gone.mp3"}, b""),
    ("undecodable", {}, b""),
    ("undecodable", {}, b"no audio"),
    ("cut short", {}, AUDIO[:-500]),
    ("silent", {}, encoded(tone(amplitude=0.001))),
    ("too short", {}, encoded(tone(0.2), "mp3")),
    ("too long", {}, encoded(tone(1.2), "mp3")),
    ("empty", {}, encoded(tone(0))),
    ("empty transcript", {"sentence": "  "}, AUDIO),
    ("control token", {"sentence": "<|ja|>はい"}, encoded(tone(hertz=4000), "mp3")),
    ("too many tokens", {"sentence": "x" * 60}, AUDIO),
    ("duplicate", {}, encoded(tone(hertz=200), "mp3")),
    ("outside the corpus", {"path": "../dev.tsv"}, b""),
    ("malformed row", {"segment": "\tsurplus"}, b""),
    ("malformed row", {"path": "nul\0.mp3"}, b""),
    ("not UTF-8", {"sentence": "bytes"}, b""),
]


def message(data: SpeechDataModule) -> str:
    with pytest.raises(DataError) as refusal:
        data.setup()
    return str(refusal.value)


def write_bad_corpus(folder: Path) -> Path:
    """Good clips in every split, and in training one of each kind that cannot be used."""
    write_common_voice(folder, SPLITS)
    rows = [common_voice_row(number) for number in range(SPLITS["train"])]
    for number, (_, cells, audio) in enumerate(BAD, 100):
        (folder / "clips" / f"clip_{number}.mp3").write_bytes(audio)
        rows.insert(5, common_voice_row(number, **cells))
    table = write_tsv(folder / "train.tsv", rows)
    table.write_bytes(table.read_bytes().replace(b"bytes", b"b\xfftes"))
    return folder


def test_bad_clips_of_every_kind_are_counted_and_the_good_ones_kept(tmp_path: Path, micro: Whisper) -> None:
    data = common_voice(write_bad_corpus(tmp_path / "ja"), micro, max_reject_rate=0.5)
    data.setup()
    assert [c.name for c in data.clips["train"]] == [f"clip_{i}.mp3" for i in range(10)]
    reasons = [reason for reason, _, _ in BAD]
    summary = data.summary()
    assert [summary[key] for key in ("corpus", "release", "language")] == ["Common Voice, ja", "ja", "ja"]
    assert summary["rejects"] == Counter(reasons)
    for split, clips in (("train", 10), ("validation", 4), ("test", 2)):
        facts = {"clips": clips, "seconds": clips / 2, "clips_over_window": 0}
        assert summary["splits"][split].items() >= facts.items()
    write_lines(tmp_path / "rejects.jsonl", data.reject_rows())
    lines = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted(line["reason"] for line in lines) == sorted(reasons)
    assert str(tmp_path) not in str(lines)


def test_the_order_of_the_clips_does_not_depend_on_the_number_of_workers(tmp_path: Path, micro: Whisper) -> None:
    write_common_voice(tmp_path / "ja", SPLITS)
    seen = []
    for workers in (0, 1, 3):
        data = common_voice(tmp_path / "ja", micro, num_workers=workers, full_window_share=0.5, trainer=trainer_of(5))
        data.setup()
        seen.append([batch["clips"] for batch in data.train_dataloader()])
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == 5


def test_a_share_of_the_steps_uses_the_full_window(tmp_path: Path, micro: Whisper) -> None:
    write_common_voice(tmp_path / "ja", SPLITS)
    micro.set_window(Window((0.7, 0.9), 0.1))
    data = common_voice(tmp_path / "ja", micro, full_window_share=0.5, trainer=trainer_of(4))
    data.setup()
    frames = [batch["input_features"][0].shape[2] for batch in data.train_dataloader()]
    assert frames == [70, 100, 70, 100]
    assert {batch["input_features"][0].shape[2] for batch in data.val_dataloader()} == {70}


def test_the_longest_clips_are_scored_first(tmp_path: Path, micro: Whisper) -> None:
    write_common_voice(tmp_path / "ja", SPLITS)
    for number, seconds in ((0, 0.4), (3, 0.9)):
        (tmp_path / "ja" / "clips" / f"clip_{number}.mp3").write_bytes(encoded(tone(seconds), "mp3"))
    data = common_voice(tmp_path / "ja", micro, eval_batch_size=4)
    data.setup()
    seconds = [s for batch in data.score_dataloader("train") for s in batch["seconds"]]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] > seconds[1] > seconds[-1]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_are_complete_and_keep_the_label_contract(tmp_path: Path, micro: Whisper, num_workers: int) -> None:
    folder = write_common_voice(tmp_path / "ja", SPLITS)
    data = common_voice(folder, micro, num_workers=num_workers, trainer=trainer_of(3))
    data.setup()
    batches = list(data.train_dataloader())
    assert [tuple(b["input_features"][0].shape) for b in batches][-1] == (2, 80, 100)
    assert sorted(name for b in batches for name in b["clips"]) == sorted(f"clip_{i}.mp3" for i in range(10))
    for batch in [*batches, *data.val_dataloader(), *data.score_dataloader("test")]:
        assert batch["input_features"][0].dtype == torch.float32
        assert batch["labels"].shape[0] == len(batch["clips"]) == len(batch["texts"])
        check_label_contract(batch, micro.processor)
    assert [b["clips"] for b in data.val_dataloader()] == [[f"clip_{i}.mp3" for i in (10, 11, 12)], ["clip_13.mp3"]]


@pytest.mark.parametrize("token", ["<|endoftext|>", "<|ja|>", "<|startoftranscript|>", "<|nospeech|>"])
def test_the_labels_of_every_batch_are_checked(
    tmp_path: Path, micro: Whisper, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    """Whatever makes them wrong, and also in the last batch."""
    folder = write_common_voice(tmp_path / "ja", {"train": 4, "dev": 3, "test": 1})
    data = common_voice(folder, micro, eval_batch_size=1)
    batches = list(data.score_dataloader("validation"))
    last, number = batches[-1]["clips"][0], micro.processor.tokenizer.convert_tokens_to_ids(token)
    text = next(clip.text for clip in data.clips["validation"] if clip.name == last)
    encode = Processor.encode

    def faulty(processor: Processor, given: str) -> list[int]:
        tokens = encode(processor, given)
        return [*tokens[:5], number, *tokens[5:]] if given == text else tokens

    monkeypatch.setattr(Processor, "encode", faulty)
    with pytest.raises(DataError, match=rf"{last}: the labels hold the control token {re.escape(token)} in the text"):
        list(data.score_dataloader("validation"))


def test_a_sample_to_score_is_seeded_and_in_order(tmp_path: Path, micro: Whisper) -> None:
    data = common_voice(write_common_voice(tmp_path / "ja", SPLITS), micro)
    data.setup()
    some = [[n for b in data.score_dataloader("train", 4) for n in b["clips"]] for _ in range(2)]
    assert some[0] == some[1] == sorted(some[0])
    assert len(set(some[0])) == 4
    assert some[0] != [f"clip_{i}.mp3" for i in range(4)]
    assert len([n for b in data.score_dataloader("train", 99) for n in b["clips"]]) == 10


@pytest.mark.parametrize("processes", [1, 2, 3, 5, 10])
def test_several_processes_score_every_clip_once(tmp_path: Path, micro: Whisper, processes: int) -> None:
    folder, read = write_common_voice(tmp_path / "ja", SPLITS), []
    for rank in range(processes):
        data = common_voice(folder, micro, trainer=trainer_of(world_size=processes, rank=rank))
        read += [name for batch in data.score_dataloader("train") for name in batch["clips"]]
    assert sorted(read) == sorted(f"clip_{i}.mp3" for i in range(10))


def test_more_processes_than_clips_are_refused(tmp_path: Path, micro: Whisper) -> None:
    folder = write_common_voice(tmp_path / "ja", SPLITS)
    data = common_voice(folder, micro, trainer=trainer_of(world_size=3))
    with pytest.raises(DataError, match="2 clips of the test split cannot be shared by 3 processes; use fewer"):
        data.score_dataloader("test")


def test_a_splits_digest_changes_with_audio_and_transcripts(tmp_path: Path, micro: Whisper) -> None:
    def digest(name: str, rows: dict[str, int]) -> str:
        data = common_voice(write_common_voice(tmp_path / name, rows), micro)
        data.setup()
        return data.prepared.digest("train")

    assert digest("a", SPLITS) == digest("b", SPLITS)
    assert digest("c", {**SPLITS, "train": 9}) != digest("a", SPLITS)


def test_long_clips_stay_in_validation_and_are_counted(tmp_path: Path, micro: Whisper) -> None:
    folder = write_common_voice(tmp_path / "ja", SPLITS)
    write_clip(folder / "clips" / "clip_10.mp3", hertz=999, seconds=1.5)
    data = common_voice(folder, micro)
    data.setup()
    assert data.summary()["splits"]["validation"]["clips_over_window"] == 1
    assert data.dataset("validation")[0]["input_features"].shape == (80, 100)


def test_too_many_bad_clips_stop_every_setup(tmp_path: Path, micro: Whisper) -> None:
    data = common_voice(write_bad_corpus(tmp_path / "ja"), micro, max_reject_rate=0.45)
    for _ in range(2):
        assert f"{len(BAD)} of {len(BAD) + 16} clips would be left out" in message(data)
        with pytest.raises(DataError):
            assert data.clips
        assert len(data.rejects) == len(BAD)


def test_too_many_unreadable_rows_stop_a_run_before_it_decodes_any_audio(
    tmp_path: Path, micro: Whisper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIKITORI_CACHE", str(tmp_path / "cache"))
    data = common_voice(write_bad_corpus(tmp_path / "ja"), micro)
    assert f"4 of {len(BAD) + 16} clips would be left out" in message(data)
    assert [reject["reason"] for reject in data.reject_rows()].count("malformed row") == 2
    assert not (tmp_path / "cache").exists()


def test_bad_rows_of_a_large_corpus_do_not_count_against_the_few_clips_of_a_limit(
    tmp_path: Path, micro: Whisper
) -> None:
    folder = write_common_voice(tmp_path / "ja", {"train": 30, "dev": 2, "test": 2})
    with (folder / "train.tsv").open("a") as table:
        table.write("a row that was cut\n")
    data = common_voice(folder, micro, limit={**ALL, "train": 2})
    data.setup()
    assert data.summary()["splits"]["train"]["clips"] == 2
    assert data.summary()["rejects"] == {"malformed row": 1}


def test_a_split_without_clips_is_named(tmp_path: Path, micro: Whisper) -> None:
    text = message(common_voice(write_common_voice(tmp_path / "ja", {**SPLITS, "dev": 0}), micro))
    assert "Common Voice, ja has no validation split (clips listed: train 10, test 2)" in text
    folder = write_common_voice(tmp_path / "silent" / "ja", SPLITS)
    for number in range(10, 14):
        (folder / "clips" / f"clip_{number}.mp3").write_bytes(encoded(tone(amplitude=0.0001), "mp3"))
    text = message(common_voice(folder, micro, max_reject_rate=1))
    assert "no clip of the validation split can be used (clips listed: train 10, validation 4, test 2; left " in text
    assert "4 silent)" in text


def test_audio_is_prepared_without_a_processor(tmp_path: Path) -> None:
    data = common_voice(write_common_voice(tmp_path / "ja", SPLITS), None)
    data.setup()
    assert data.summary()["splits"]["train"]["seconds"] == 5.0


def test_every_clip_of_the_demo_corpus_is_used(micro: Whisper) -> None:
    limit = {"train": 6, "validation": 3, "test": 3, "sample": True}
    data = Demo(**{**LOADING, "limit": limit, "allow_shared_speakers": True})
    data.setup()
    assert [split["clips"] for split in data.summary()["splits"].values()] == [6, 3, 3]
    assert data.summary()["rejects"] == {}


def test_a_manifest_is_read(tmp_path: Path, micro: Whisper) -> None:
    names = {"train": "a.wav", "validation": "b.flac", "test": "c.ogg"}
    rows = [{"path": path, "text": f"文 {split}", "split": split} for split, path in names.items()]
    for i, path in enumerate(names.values()):
        write_clip(tmp_path / path, hertz=300 + 10 * i)
    table = write_csv(tmp_path / "all.csv", rows)
    data = Manifest(str(table), "path", "text", "split", None, processor=micro.processor, **LOADING)
    data.setup()
    (batch,) = data.score_dataloader("validation")
    assert (batch["clips"], batch["texts"]) == (["b.flac"], ["文 validation"])
    assert data.summary()["corpus"] == "manifest, all.csv"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have their own default")
def test_workers_are_children_of_the_run_whatever_pythons_default_is(tmp_path: Path, micro: Whisper) -> None:
    """Python 3.14's default starts them from a server, with which they would die or outlive the run."""
    data = common_voice(write_common_voice(tmp_path / "ja", SPLITS), micro, num_workers=2)
    data.trainer = trainer_of(steps=3)
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        batches = iter(data.train_dataloader())
        assert len(list(batches)) == 3
        parents = {Path(f"/proc/{w.pid}/stat").read_text().rsplit(")", 1)[1].split()[1] for w in batches._workers}
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert parents == {str(os.getpid())}


def test_a_cache_of_encoder_outputs_that_is_switched_off_is_not_used(tmp_path: Path, micro: Whisper) -> None:
    micro.model.model.encoder.requires_grad_(False)
    data = common_voice(write_common_voice(tmp_path / "ja", SPLITS), micro, cache_encoder_outputs=True)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    before = torch.get_rng_state()
    data.build_encoder_caches(pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", **quiet), micro.model)
    assert torch.equal(torch.get_rng_state(), before)
    assert data.first_batch("validation")["encoder_states"]
    data.cache_encoder_outputs = False
    assert data.first_batch("validation")["input_features"]


def test_runs_with_different_seeds_read_the_same_samples(tmp_path: Path, micro: Whisper) -> None:
    folder = write_common_voice(tmp_path / "ja", {"train": 30, "dev": 12, "test": 12})
    limit = {"train": 20, "validation": 6, "test": 6, "sample": True}
    modules = [common_voice(folder, micro, limit=limit, seed=seed, trainer=trainer_of(2)) for seed in (0, 1, 2)]
    names = [{split: [clip.name for clip in data.clips[split]] for split in data.splits} for data in modules]
    assert names[0] == names[1] == names[2]
    assert names[0]["test"] != [f"clip_{i}.mp3" for i in range(42, 48)]
    for split, count in (("train", 5), ("test", 3)):
        scored = [[clip.name for clip in data.scored(split, count)] for data in modules]  # type: ignore[arg-type]
        assert scored[0] == scored[1] == scored[2]
    first = [next(iter(data.train_dataloader()))["clips"] for data in modules]
    assert first[0] != first[1]


def test_only_the_splits_that_are_needed_are_read(tmp_path: Path, micro: Whisper) -> None:
    folder = write_common_voice(tmp_path / "ja", {"test": 3})
    data = common_voice(folder, micro, load_splits=["test"])
    assert len(data.clips["test"]) == 3
    every = common_voice(folder, None, load_splits=None)
    every.setup()
    assert every.splits == list(every.summary()["splits"]) == ["test"]
    with pytest.raises(DataError, match=r"no train split \(clips listed: test 3\): .*train\.tsv does not exist"):
        common_voice(folder, micro).load_corpus()


def test_a_list_without_splits_is_divided(tmp_path: Path, micro: Whisper) -> None:
    rows = [{"path": f"{i}.wav", "text": f"文 {i}", "who": f"{i % 10}"} for i in range(30)]
    for i in range(30):
        write_clip(tmp_path / f"{i}.wav", hertz=200 + 10 * i)
    table = write_csv(tmp_path / "all.csv", rows)
    with pytest.raises(DataError, match=r"no validation split .*has no column split.*\n.*data\.held_out=0\.1 takes it"):
        Manifest(str(table), processor=micro.processor, **LOADING).load_corpus()
    data = Manifest(str(table), speaker_column="who", held_out=0.2, processor=micro.processor, **LOADING)
    data.setup()
    sizes = {split: facts["clips"] for split, facts in data.summary()["splits"].items()}
    assert sum(sizes.values()) == 30
    assert all(size and size % 3 == 0 for size in sizes.values())
    test = Manifest(str(table), speaker_column="who", held_out=0.2, load_splits=["test"], **LOADING)
    assert test.clips["test"] == data.clips["test"]


def test_a_clip_that_is_scored_is_not_trained_on_under_another_name(tmp_path: Path, micro: Whisper) -> None:
    folder = write_common_voice(tmp_path / "ja", {"train": 30, "dev": 3, "test": 3})
    copied = (folder / "clips" / "clip_33.mp3").read_bytes()
    (folder / "clips" / "clip_0.mp3").write_bytes(copied)
    data = common_voice(folder, micro)
    data.setup()
    assert [(r.name, r.reason, r.detail) for r in data.rejects] == [
        ("clip_0.mp3", "duplicate", "same audio as clip_33.mp3 in test")
    ]
    assert len(common_voice(folder, micro, allow_shared_clips=True).clips["train"]) == 30


def test_parts_of_a_recording_are_clips_of_their_own(
    tmp_path: Path, micro: Whisper, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = tmp_path / "talk.flac"
    write_clip(talk, seconds=6)
    bounds = [(0, 0.5), (0.5, 1.25), (4, 5), (5.5, ""), (5.5, 7), (9, 10), (0, 2)]
    splits = ["train", "validation", "test", "train", "train", "train", "train"]
    rows = [
        {"path": talk.name, "text": f"文 {i}", "split": split, "from": str(start), "to": str(end)}
        for i, ((start, end), split) in enumerate(zip(bounds, splits, strict=True))
    ]
    decoded = []
    decode_one = Decoders.__call__
    monkeypatch.setattr(Decoders, "__call__", lambda self, *of: decoded.append(of[0]) or decode_one(self, *of))
    data = Manifest(
        str(write_csv(tmp_path / "all.csv", rows)),
        **{**LOADING, "max_reject_rate": 1, "processor": micro.processor},
        start_column="from",
        end_column="to",
    )
    data.setup()
    assert decoded == [talk] * 3  # once for each split
    whole = to_int16(decode(talk))
    for split, start, end in (("train", 0, 0.5), ("train", 5.5, 6), ("validation", 0.5, 1.25), ("test", 4, 5)):
        (name,) = (c.name for c in data.clips[split] if c.part and c.part[0] == start)  # type: ignore[index]
        assert (data.prepared.audio_caches[split].pcm(name) == whole[round(start * 16_000) : round(end * 16_000)]).all()  # type: ignore[index]
    assert {(r.name, r.reason, r.detail) for r in data.rejects} == {
        ("talk.flac#t=5.5,7", "cut short", "0.50 s of 1.50 s, by the times that the corpus lists"),
        ("talk.flac#t=9,10", "cut short", "the recording ends before this part of it"),
        ("talk.flac#t=0,2", "too long", "2.00 s, over the model's window of 1 s (model.window_s)"),
    }


ORPHANS = """
import multiprocessing, os, sys, time
from functools import partial
from torch.utils.data import DataLoader
from kikitori.runtime.processes import exit_with_parent, worker_start_method
multiprocessing.set_start_method("forkserver")
how = {{"num_workers": 1, "multiprocessing_context": worker_start_method()}}

def late(run, worker):
    time.sleep(1)  # the run is killed before its worker has begun
    exit_with_parent(run, worker)

begin = {begin}
loader = iter(DataLoader(range(10**6), **how, worker_init_fn=partial(begin, os.getpid())))
if begin is exit_with_parent:
    next(loader)
print(loader._workers[0].pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("begin", ["exit_with_parent", "late"])
def test_a_loader_worker_ends_when_its_run_is_killed_at_any_moment(begin: str) -> None:
    line = [sys.executable, "-c", ORPHANS.format(begin=begin)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        worker = Path(f"/proc/{run.stdout.readline().strip()}")
        assert worker.exists()
        run.kill()
    end = time.monotonic() + 10
    while worker.exists() and "Z" not in worker.joinpath("stat").read_text().rsplit(")", 1)[1][:3]:
        assert time.monotonic() < end, "the worker outlives the run"
        time.sleep(0.05)
