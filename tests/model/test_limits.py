"""Configurations of a model from a stranger: each gives a model that works, or an error that names the fault."""

import json
import os
import shutil
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperConfig
from transformers.models.whisper import configuration_whisper

from kikitori.inference.transcribe import transcribe
from kikitori.model.limits import CONFIG, GENERATION, TIMESTAMPS, parameters
from kikitori.model.loading import build_whisper, load_whisper, rebuild_whisper
from kikitori.model.whisper import Whisper
from kikitori.runtime.errors import ModelError

FILES = ("config.json", "config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 10**5, 10**7, 10**12, 10**400, 0.5, -0.5, 1e308, float("nan"), float("inf")),
    *(
        "",
        "2",
        "os.system",
        "\x1b[2J",
        "../x",
        [],
        [1],
        [10**9],
        ["a"],
        [[1, 2]],
        [None],
        {},
        {"a": 1},
        {"_target_": "x"},
    ),
    [[[[[[[[[[1]]]]]]]]]],
]
MORE = [
    *("num_labels", "id2label", "hidden_size", "num_hidden_layers", "pruned_heads", "auto_map", "dtype", "torch_dtype"),
    *("attn_implementation", "_attn_implementation", "kikitori_window", "kikitori_trained_on", "max_length", "top_k"),
    "kikitori_timestamps",
    *("forced_decoder_ids", "cache_implementation", "compile_config", "watermarking_config", "assistant_model"),
    *("num_return_sequences", "num_beam_groups", "temperature", "prompt_lookup_num_tokens", "custom_generate"),
]
NOISE = torch.from_numpy(0.3 * np.random.default_rng(0).standard_normal(16_000)).float()
# Seconds that loading one of them and transcribing a second may take; it takes 0.2 s.
LIMIT_S = 20
written: list[str] = []


def note_writing(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook, which cannot be removed: what is written or deleted while `written` is looked at."""
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event in (
        "os.remove",
        "os.rename",
        "os.mkdir",
        "os.rmdir",
        "os.system",
        "subprocess.Popen",
        "os.exec",
    ):
        written.append(f"{event} {arguments[0]}")


@pytest.fixture(scope="module", autouse=True)
def watched() -> None:
    sys.addaudithook(note_writing)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build_whisper(32, 1, 1, 2, window_s=1, max_label_tokens=32).save(folder)
    return folder


def mutated(folder: Path, random: Random) -> str:
    """Changes one to three values of a model's files; returns what was changed."""
    changes = []
    for _ in range(random.randint(1, 3)):
        path = folder / random.choice(FILES)
        values = json.loads(path.read_text(encoding="utf-8"))
        key = random.choice([*values, *MORE])
        if key == "kikitori_window" and random.random() < 0.7:
            value: Any = {"edges_s": [random.choice(VALUES)], "margin_s": random.choice(VALUES)}
        elif key == "kikitori_trained_on" and random.random() < 0.7:
            value = {name: random.choice([0.5, *VALUES]) for name in ("longest_s", "p95_s", "density")}
        elif key == "kikitori_timestamps" and random.random() < 0.7:
            value = {name: random.choice([1, *VALUES]) for name in TIMESTAMPS}
        elif isinstance(values.get(key), dict) and random.random() < 0.7:
            value = values[key] | {random.choice([*values[key], "x"]): random.choice(VALUES)}
        else:
            value = random.choice(VALUES)
        values[key] = value
        path.write_text(json.dumps(values), encoding="utf-8")
        changes.append(f"{path.name}: {key}={str(value)[:60]}")
    return "; ".join(changes)


@pytest.mark.parametrize("seed", [*range(40), *(pytest.param(s, marks=pytest.mark.long) for s in range(40, 500))])
def test_a_changed_configuration_gives_a_model_that_works_or_an_error(model: Path, tmp_path: Path, seed: int) -> None:
    shutil.copytree(model, tmp_path / "model")
    changes = mutated(tmp_path / "model", Random(seed))
    written.clear()
    began = time.monotonic()
    try:
        whisper = load_whisper(str(tmp_path / "model"))
    except ModelError:
        pass
    else:
        assert isinstance(transcribe(whisper, NOISE), str), changes
    assert time.monotonic() - began < LIMIT_S, changes
    assert not written, changes
    (tmp_path / "seen").touch()
    assert written


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"encoder_layers": 200_000}, "encoder_layers=200000; it must be a whole number from 1 to 256"),
        ("config.json", {"d_model": 8_192, "encoder_layers": 200}, "sizes of .* parameters, over 3000 M"),
        ("config.json", {"encoder_ffn_dim": 65_536}, "config.json is of a model of 4.* M parameters, its weights are"),
        ("config.json", {"dropout": float("nan")}, "dropout=nan; it must be a number from 0 to 1"),
        ("config.json", {"decoder_start_token_id": 364}, "decoder_start_token_id=364, but a vocabulary of 364"),
        ("config.json", {"encoder_attention_heads": 3}, "d_model=32, which its attention heads do not divide"),
        ("config.json", {"kikitori_window": {"edges_s": [1, 0.5], "margin_s": 0}}, "which do not ascend"),
        ("config.json", {"kikitori_trained_on": {"p95_s": 1}}, "kikitori_trained_on with no density"),
        ("config.json", {"kikitori_timestamps": {"texts": 0}}, "kikitori_timestamps with texts=0; it must be a whole"),
        ("config.json", {"kikitori_timestamps": {"texts": 9}}, "kikitori_timestamps with no cer"),
        ("config.json", {"kikitori_languages": ["ja", "xx"]}, "kikitori_languages: languages="),
        ("config.json", {"kikitori_languages": ["ja", "ko", "ja"]}, "each must be there once"),
        ("config.json", {"kikitori_languages": "ja"}, "kikitori_languages: languages=ja; it must be a list"),
        ("generation_config.json", {"num_beams": 100_000}, "num_beams=100000; it must be a whole number from 1 to 100"),
        ("generation_config.json", {"suppress_tokens": [364]}, "suppress_tokens with 364, but a vocabulary of 364"),
        ("generation_config.json", {"num_beams": "2"}, "num_beams=2; it must be a whole number"),
    ],
)
def test_a_number_that_cannot_be_is_named_with_what_it_may_be(
    model: Path, tmp_path: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    shutil.copytree(model, tmp_path / "model")
    path = tmp_path / "model" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        load_whisper(str(tmp_path / "model"))


def test_fields_of_other_models_are_not_used(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    odd = {"num_labels": 10**7, "hidden_size": 10**6, "id2label": {}, "pruned_heads": {"0": [0]}, "dtype": "float64"}
    path.write_text(json.dumps(json.loads(path.read_text()) | odd), encoding="utf-8")
    config = load_whisper(str(tmp_path / "model")).model.config
    assert (config.d_model, config.num_labels) == (32, 2)
    assert not getattr(config, "pruned_heads", None)


def test_every_field_of_whisper_has_a_rule() -> None:
    fields = configuration_whisper.WhisperConfig.__annotations__
    assert CONFIG.keys() == {name for name in fields if name not in ("model_type", "keys_to_ignore_at_inference")}
    assert all(CONFIG[name].accepts(value) for name, value in WhisperConfig().to_dict().items() if name in CONFIG)


def test_stock_sizes_are_within_the_limits() -> None:
    large = WhisperConfig(
        d_model=1280, encoder_layers=32, decoder_layers=32, encoder_ffn_dim=5120, decoder_ffn_dim=5120, vocab_size=51866
    )
    assert 1.5e9 < parameters(large) < 1.6e9
    stock = {"suppress_tokens": [1, 2, 50_361], "alignment_heads": [[7, 0], [25, 12]], "max_length": 448}
    stock |= {"lang_to_id": {"<|ja|>": 50_266}, "task_to_id": {"transcribe": 50_360}, "is_multilingual": True}
    assert all(GENERATION[name].accepts(value) for name, value in stock.items())


def test_the_number_of_parameters_is_that_of_the_model(micro: Whisper) -> None:
    true = sum(weight.numel() for weight in micro.model.parameters())
    assert 0.9 * true < parameters(micro.model.config) <= true


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder_layers": 200_000},
        {"d_model": 10**6},
        {"window_s": 10**6},
        {"window": {"edges_s": "x", "margin_s": 0}},
        {"trained_on": {"p95_s": "x"}},
        {"languages": ["ja", 7]},
        {"languages": {"ja": "ko"}},
        {"generation": {"max_new_tokens": 5, "num_beams": 10**6}},
        {"generation": {"max_new_tokens": "x", "num_beams": 1}},
    ],
    ids=str,
)
def test_a_recipe_of_a_checkpoint_has_the_same_limits(micro: Whisper, changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="it must be"):
        rebuild_whisper({**micro.recipe, **changes})
