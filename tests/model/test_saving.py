"""The model's folder is read by transformers 4 and 5, CTranslate2 and faster-whisper, not by kikitori alone."""

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from transformers import (
    AutoFeatureExtractor,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from kikitori.audio.waveform import decode
from kikitori.inference.generate import generate
from kikitori.model.loading import load_whisper
from kikitori.model.processor import END, SPECIAL_TOKENS, byte_tokenizer, make_processor
from kikitori.model.saving import save_model
from kikitori.model.whisper import Whisper, encode

FILES = {
    *(
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "preprocessor_config.json",
    ),
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json"),
    "special_tokens_map.json",
}
TEXT = "わたしは音楽が好きです。 Hello, wörld!"


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_folder_has_the_files_of_transformers_4_and_5(micro: Whisper, tmp_path: Path) -> None:
    micro.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert read(tmp_path / "preprocessor_config.json") == {
        "chunk_length": 1,
        "dither": 0.0,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": 80,
        "hop_length": 160,
        "n_fft": 400,
        "n_samples": 16000,
        "nb_max_frames": 100,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
        "sampling_rate": 16000,
    }
    named = {f"{name}_token": END for name in ("bos", "eos", "pad", "unk")}
    assert read(tmp_path / "special_tokens_map.json") == {**named, "additional_special_tokens": SPECIAL_TOKENS}
    config = read(tmp_path / "tokenizer_config.json")
    assert config == {
        **named,
        "add_prefix_space": False,
        "additional_special_tokens": SPECIAL_TOKENS,
        "backend": "tokenizers",
        "language": "ja",
        "model_max_length": config["model_max_length"],
        "predict_timestamps": False,
        "processor_class": "WhisperProcessor",
        "task": "transcribe",
        "tokenizer_class": "WhisperTokenizer",
    }
    vocabulary, added = read(tmp_path / "vocab.json"), read(tmp_path / "added_tokens.json")
    assert vocabulary | added == micro.processor.tokenizer.get_vocab()
    assert (len(vocabulary), list(added)) == (257, SPECIAL_TOKENS)
    assert (tmp_path / "merges.txt").read_text(encoding="utf-8") == "#version: 0.2\n"


def test_a_folder_of_transformers_4_keeps_its_special_and_added_tokens_and_its_spelling(
    micro: Whisper, tmp_path: Path
) -> None:
    """Those on the Hub name every special token, and have timestamps and English spellings."""
    tokenizer = byte_tokenizer()
    stamps = [f"<|{0.02 * i:.2f}|>" for i in range(5)]
    tokenizer.add_tokens([AddedToken(stamp, normalized=False) for stamp in stamps])
    tokenizer.english_spelling_normalizer = {"colour": "color"}
    save_model(micro.model, make_processor(tokenizer, micro.model.config, "ja", "transcribe", "micro"), tmp_path / "a")
    again = WhisperTokenizer.from_pretrained(str(tmp_path / "a"), local_files_only=True)
    save_model(micro.model, make_processor(again, micro.model.config, "ja", "transcribe", "micro"), tmp_path / "b")
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert {path.name for path in folder.iterdir()} == FILES | {"normalizer.json"}
        assert read(folder / "normalizer.json") == {"colour": "color"}
        assert list(read(folder / "added_tokens.json")) == [*SPECIAL_TOKENS, *stamps]
        assert read(folder / "tokenizer_config.json")["additional_special_tokens"] == SPECIAL_TOKENS
        assert not {"is_local", "local_files_only", "extra_special_tokens"} & set(
            read(folder / "tokenizer_config.json")
        )


@pytest.mark.parametrize(
    ("reader", "arguments"),
    [
        (AutoTokenizer, {}),
        (AutoTokenizer, {"use_fast": False}),
        (WhisperTokenizer, {"language": "ja", "task": "transcribe"}),
        (AutoProcessor, {}),
        (WhisperProcessor, {}),
    ],
)
def test_every_class_of_transformers_reads_the_same_tokenizer(
    micro: Whisper, tmp_path: Path, reader: Any, arguments: dict[str, Any]
) -> None:
    micro.save(tmp_path)
    found = reader.from_pretrained(str(tmp_path), **arguments)
    tokenizer = getattr(found, "tokenizer", found)
    assert tokenizer(TEXT)["input_ids"] == micro.processor.encode(TEXT)
    assert tokenizer.decode(micro.processor.encode(TEXT), skip_special_tokens=True) == TEXT
    assert set(tokenizer.all_special_tokens) == {END, *SPECIAL_TOKENS}


def test_stock_tools_read_the_limit_of_new_tokens_without_a_warning(
    micro: Whisper, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    micro.configure_generation(max_new_tokens=7, num_beams=1)
    micro.save(tmp_path)
    model = WhisperForConditionalGeneration.from_pretrained(tmp_path)
    logger = logging.getLogger("transformers.generation.utils")
    logger.addHandler(caplog.handler)
    tokens = model.generate(torch.zeros(1, 80, 2 * model.config.max_source_positions))
    logger.removeHandler(caplog.handler)
    assert 7 - 1 <= tokens.shape[1] <= 7 + len(micro.processor.prefix)
    assert "max_length" not in caplog.text


def test_a_folder_without_the_added_files_still_loads(micro: Whisper, tmp_path: Path) -> None:
    """As earlier versions saved it."""
    micro.save(tmp_path)
    earlier = ("config.json", "generation_config.json", "model.safetensors", "processor_config.json")
    for path in tmp_path.iterdir():
        if path.name not in (*earlier, "tokenizer.json", "tokenizer_config.json"):
            path.unlink()
    assert load_whisper(str(tmp_path)).processor.encode(TEXT) == micro.processor.encode(TEXT)
    assert AutoFeatureExtractor.from_pretrained(str(tmp_path)).feature_size == 80


def like_large_v3(base: Whisper) -> Whisper:
    """A random model with the Mel bins and the vocabulary of large-v3."""
    state = json.loads(base.processor.tokenizer.backend_tokenizer.to_str())["model"]
    tokenizer = WhisperTokenizer(state["vocab"], [tuple(merge) for merge in state["merges"]], pad_token=END)
    tokenizer.add_special_tokens({"extra_special_tokens": SPECIAL_TOKENS})
    tokenizer.add_tokens([AddedToken(f"<|{0.02 * i:.2f}|>", normalized=False) for i in range(1501)])
    sizes = {f"{part}_{size}": n for part in ("encoder", "decoder") for size, n in (("layers", 2), ("ffn_dim", 128))}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 64, "num_mel_bins": 128}
    ids = {f"{name}_token_id": 50257 for name in ("bos", "eos", "pad")} | {"decoder_start_token_id": 50258}
    config = WhisperConfig(vocab_size=len(tokenizer), **sizes, **ids, begin_suppress_tokens=None, init_std=0.08)
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig()
    return Whisper(model, make_processor(tokenizer, config, "ja", "transcribe", "large-v3"), {})


@pytest.mark.long
@pytest.mark.parametrize("size", ["base", "large_v3"])
def test_faster_whisper_reads_the_folder_and_its_engine_writes_the_same_texts(
    whisper_base: Whisper, speech: Path, tmp_path: Path, size: str
) -> None:
    """By the commands in its README."""
    ctranslate2, faster_whisper = pytest.importorskip("ctranslate2"), pytest.importorskip("faster_whisper")
    if size == "base":
        # One step of training, so that the weights are new.
        whisper, step = whisper_base, torch.optim.AdamW(whisper_base.model.parameters(), lr=1e-6)
        tokens = torch.tensor([whisper.processor.encode(TEXT)])
        whisper.model(torch.zeros(1, 80, 3000), labels=tokens).loss.backward()
        step.step()
    else:
        whisper = like_large_v3(whisper_base)
    whisper.save(tmp_path / "raw")
    whisper = load_whisper(str(tmp_path / "raw"), "ja")  # which completes the generation config
    whisper.save(tmp_path / "model")
    whisper.model.eval()
    command = [str(Path(sys.executable).with_name("ct2-transformers-converter")), "--model", str(tmp_path / "model")]
    options = ["--output_dir", str(tmp_path / "ct2"), "--copy_files", "tokenizer.json", "preprocessor_config.json"]
    subprocess.run([*command, *options, "--quantization", "float32"], check=True)
    model = faster_whisper.WhisperModel(str(tmp_path / "ct2"), device="cpu", compute_type="float32")
    assert model.feature_extractor.mel_filters.shape[0] == whisper.processor.num_mel_bins
    prefix, limit = whisper.processor.prefix, 60
    whisper.configure_generation(limit, num_beams=1, max_tokens_per_s=math.inf)
    for clip in sorted((speech / "clips").glob("*.mp3"))[:6]:
        audio = decode(clip)
        segments, _ = model.transcribe(audio.numpy(), language="ja", without_timestamps=True, max_new_tokens=limit)
        assert isinstance("".join(segment.text for segment in segments), str)
        # It pads features with zeros. With the same features, the texts are the same.
        features = whisper.processor.log_mel(audio, full_window=True)[None]
        view = ctranslate2.StorageView.from_array(features.numpy())
        (theirs,) = model.model.generate(view, [prefix], beam_size=1, max_length=2 * (limit + len(prefix)))
        with torch.inference_mode():
            (ours,) = generate(whisper, encode(whisper.model, features), [30.0])
        assert ours.text == whisper.processor.decode([theirs.sequences_ids[0][:limit]])[0]


SCRIPT = """
import sys
from transformers import AutoProcessor, AutoTokenizer, WhisperForConditionalGeneration, WhisperProcessor
from transformers import WhisperTokenizer, WhisperTokenizerFast
folder, text = sys.argv[1:]
tokenizers = [reader.from_pretrained(folder) for reader in (WhisperTokenizer, WhisperTokenizerFast, AutoTokenizer)]
tokenizers += [reader.from_pretrained(folder).tokenizer for reader in (WhisperProcessor, AutoProcessor)]
(ids,) = {tuple(tokenizer(text)["input_ids"]) for tokenizer in tokenizers}
assert {tokenizer.decode(ids, skip_special_tokens=True) for tokenizer in tokenizers} == {text}
assert WhisperProcessor.from_pretrained(folder).feature_extractor.feature_size == 80
WhisperForConditionalGeneration.from_pretrained(folder)
print(*ids)
"""


@pytest.mark.long
def test_transformers_4_reads_the_folder(micro: Whisper, tmp_path: Path) -> None:
    python = os.environ.get("KIKITORI_TEST_TRANSFORMERS_4")
    if not python:
        pytest.skip("KIKITORI_TEST_TRANSFORMERS_4 is not set to a Python that has transformers 4")
    micro.save(tmp_path)
    found = subprocess.run([python, "-c", SCRIPT, tmp_path, TEXT], check=True, capture_output=True, text=True)
    assert list(map(int, found.stdout.split())) == micro.processor.encode(TEXT)
