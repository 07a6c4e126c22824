"""The arithmetic of the benchmarks, and one run of each program on a very small model."""

import json
import math
import sys
from collections import Counter
from pathlib import Path

import adapters
import augmentation
import flops
import full_window_share
import pytest
import scale
import speed
import stand_ins
import tables
import torch
from measure import Part, activation_mb
from recordings import write_common_voice
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperConfig, WhisperForConditionalGeneration

from kikitori.audio.waveform import decode
from kikitori.corpora.common_voice import read
from kikitori.model.loading import build_whisper
from kikitori.runtime.paths import DEMO

MICRO = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2}
MICRO |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 80}


def model(**changes: object) -> WhisperForConditionalGeneration:
    # Eager attention, whose products the counter sees on a CPU.
    config = {**MICRO, "vocab_size": 51865, "max_source_positions": 50, "attn_implementation": "eager"}
    return WhisperForConditionalGeneration(WhisperConfig(**{**config, **changes}))


@pytest.mark.parametrize(("frames", "tokens"), [(100, 7), (60, 1)])
def test_the_flops_of_a_training_step_equal_torchs_count(frames: int, tokens: int) -> None:
    whisper = model(max_source_positions=frames // 2)
    with FlopCounterMode(display=False) as counter:
        batch = {"input_features": torch.zeros(3, 80, frames), "labels": torch.ones(3, tokens, dtype=torch.int64)}
        whisper(**batch, use_cache=False).loss.backward()
    assert counter.get_total_flops() == 3 * flops.training(whisper.config, frames, tokens)


def test_activation_memory_counts_each_storage_once() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.Sigmoid(), torch.nn.Linear(20, 1))

    def loss(clips: int, frames: int, tokens: int) -> torch.Tensor:
        return layers(torch.zeros(clips, 10)).sum()

    # A clip's input and the sigmoid's output, which two operations save: 30 numbers of 4 bytes.
    assert activation_mb(loss, layers, [[Part(2, 0, 0)], [Part(1, 1, 0)]], "32") == pytest.approx(30 * 4 / 1e6)


def test_a_ratio_is_taken_within_its_round() -> None:
    def row(number: int, contender: str, speed: float) -> dict:
        figures = {"clips_per_s": speed, "bytes": 1, "peak_mb": None, "growth_mb_per_clip": 1, "utilisation": 1}
        figures |= {"activation_mb_per_clip": 1, "flops_per_s": 1, "cer": None}
        phases = dict.fromkeys(("prepare", "train", "whole", "evaluate"), figures)
        return {"round": number, "contender": contender, **phases}

    # The second round found the machine half as fast, the third was interrupted.
    rounds = [row(0, "recipe", 2.0), row(0, "full", 6.0), row(1, "full", 3.0), row(1, "recipe", 1.0)]
    summary = tables.summarise([*rounds, row(2, "full", 4.5)])
    assert summary["full"]["train/clips_per_s"] == {"mean": 4.5, "low": 3.0, "high": 6.0}
    assert summary["full"]["train/clips_per_s/ratio"] == {"mean": 3.0, "low": 3.0, "high": 3.0}
    table = tables.rows(summary)
    assert ["trained clips/s", "1.50 [1.00, 2.00]", "4.50 [3.00, 6.00]"] in table
    assert ["  times the recipe", "1.00", "3.00"] in table
    assert ["peak memory, GB", "–", "–"] in table


def test_stand_in_clips_have_the_duration_of_common_voice_clips(tmp_path: Path) -> None:
    stand_ins.common_voice(tmp_path / "ja", 40, 1)
    corpus = read(str(tmp_path / "ja"), "ja", ["train"], tmp_path)
    assert not corpus.rejects
    seconds = [len(decode(clip.source)) / 16_000 for clip in corpus.clips]  # type: ignore[arg-type]
    assert sum(seconds) / len(seconds) == pytest.approx(stand_ins.MEAN_S, rel=0.15)
    characters = sum(len(clip.text) for clip in corpus.clips)
    assert 3 < characters / sum(seconds) < 7


def test_variants_of_a_recording_decode_to_different_samples() -> None:
    mp3 = min((DEMO / "clips").iterdir()).read_bytes()
    assert scale.variant(mp3, 0) == mp3
    variants = [decode(scale.variant(mp3, number)) for number in range(64)]
    assert len({waveform.numpy().tobytes() for waveform in variants}) == 64
    # Some frames 1.5 dB softer, none damaged.
    assert all((waveform - variants[0]).abs().max() < 0.2 * variants[0].abs().max() for waveform in variants)


@pytest.mark.long
def test_every_contender_is_timed_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate")
    monkeypatch.setattr(stand_ins, "BASE", {**MICRO, "vocab_size": 51865})
    words = ["--batch", "2", "--steps", "1", "--eval-clips", "2", "--rounds", "1", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["speed.py", *words])
    speed.main()
    results = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    assert list(results["summary"]) == ["recipe", "fair", "full", "bucketed"]
    for figures in results["summary"].values():
        for measure in ("prepare/clips_per_s", "train/clips_per_s", "evaluate/clips_per_s"):
            assert 0 < figures[f"{measure}/ratio"]["mean"] < math.inf
        # Random weights read noise.
        assert figures["evaluate/cer"] is None
    parts = {row["contender"]: row["train"]["parts"][0] for row in results["rounds"]}
    assert {name: sum(clips for clips, _, _ in part) for name, part in parts.items()} == dict.fromkeys(parts, 2)
    assert parts["recipe"][0][1] == parts["fair"][0][1] == parts["full"][0][1] == 3000
    assert all(frames < 3000 for _, frames, _ in parts["bucketed"])
    # The tutorial's labels hold one token more: the start, which its check never cuts.
    assert parts["recipe"][0][2] == parts["fair"][0][2] + 1
    assert "| CER after the run, % | – | – | – | – |" in (tmp_path / "speed.md").read_text(encoding="utf-8")


def test_folds_are_of_similar_size_and_share_no_speaker() -> None:
    clips_of = Counter({"a": 11, "b": 7, "c": 6, "d": 6, "e": 4, "f": 1})
    fold_of = full_window_share.deal(clips_of, 3)
    sizes = Counter[int]()
    for speaker, fold in fold_of.items():
        sizes[fold] += clips_of[speaker]
    assert sorted(sizes.values()) == [11, 12, 12]


def test_a_text_that_repeats_itself_compresses_like_a_loop() -> None:
    ratio = full_window_share.compression_ratio
    assert ratio("ん" * 225) > ratio("猫が、" * 20) > full_window_share.COMPRESSION_RATIO
    assert ratio("わたしは日曜日も働いています。") < full_window_share.COMPRESSION_RATIO


@pytest.mark.long
def test_each_share_is_trained_and_read_in_both_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = write_common_voice(tmp_path / "ja", {"train": 4, "dev": 1, "test": 1})
    build_whisper(16, 1, 1, 2, window_s=3, max_label_tokens=64).save(tmp_path / "model")
    words = ["--release", str(release), "--model", str(tmp_path / "model"), "--precision", "32-true", "--batch", "2"]
    words += ["--shares", "0", "0.5", "--steps", "2", "--seeds", "0", "--folds", "2", "--max-new-tokens", "4"]
    monkeypatch.setattr(sys, "argv", ["full_window_share.py", *words, "--output", str(tmp_path / "out")])
    full_window_share.main()
    runs = [json.loads(line) for line in (tmp_path / "out/runs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(runs) == 3 * 2
    clips = {f"clip_{number}.mp3" for number in range(6)}
    for share in (None, 0.0, 0.5):
        for window in full_window_share.WINDOWS:
            assert {c["clip"] for run in runs if run["share"] == share for c in run["clips"][window]} == clips
    table = (tmp_path / "out/table.md").read_text(encoding="utf-8")
    assert [line.split(" | ")[1] for line in table.splitlines()[2:5]] == ["all", "0", "0.5"]


@pytest.mark.long
def test_the_cost_of_each_augmentation_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = write_common_voice(tmp_path / "ja", {"train": 4, "dev": 1, "test": 1})
    words = ["--release", str(release), "--rounds", "1", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["augmentation.py", *words])
    augmentation.main()
    table = (tmp_path / "augmentation.md").read_text(encoding="utf-8").splitlines()
    names = [line.split(" | ")[0].removeprefix("| ") for line in table[2:-2]]
    assert names[:4] == list(augmentation.CHOICES)
    assert len(names) == 4 + len(augmentation.ALONE)
    assert table[-1].startswith("- 6 clips, 2 times in each of 1 rounds")


@pytest.mark.long
def test_ways_to_train_are_compared_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft", reason="adapters need the package peft")
    monkeypatch.setattr(stand_ins, "BASE", {**MICRO, "vocab_size": 51865})
    words = ["--batch", "2", "--steps", "2", "--precision", "32", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["adapters.py", *words, "--only", "full", "lora", "adalora"])
    adapters.main()
    rounds = json.loads((tmp_path / "adapters.json").read_text(encoding="utf-8"))["rounds"]
    full, lora = rounds["full"][0], rounds["lora"][0]
    assert 0 < lora["trained_weights"] < full["trained_weights"]
    # Two moments of each trained weight, in four bytes.
    assert lora["optimizer_mb"] == pytest.approx(8e-6 * lora["trained_weights"], rel=0.01)
    assert lora["checkpoint_mb"] < full["checkpoint_mb"]
    assert "| full | " in (tmp_path / "adapters.md").read_text(encoding="utf-8")


@pytest.mark.long
def test_scale_decodes_every_repeated_clip_separately(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "SIZES", (20, 600))
    monkeypatch.setattr(sys, "argv", ["scale.py", "--output", str(tmp_path)])
    scale.main()
    few, many = json.loads((tmp_path / "scale.json").read_text(encoding="utf-8"))["sizes"]
    # 480 clips have 120 variants here.
    assert (few["prepare"]["clips"], many["prepare"]["clips"], many["prepare"]["left_out"]) == (20, 600, 0)
    assert 25 < many["prepare"]["disk_mb"] / few["prepare"]["disk_mb"] < 35
    assert many["prepare"]["peak_mb"] < 100
    assert many["epoch"]["clips_per_s"] > 0
