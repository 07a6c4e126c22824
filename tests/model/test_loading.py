import json
import math
from inspect import signature
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from kikitori.model.loading import build_whisper, load_whisper, rebuild_whisper
from kikitori.model.processor import byte_tokenizer
from kikitori.model.whisper import Whisper, encode
from kikitori.model.window import FULL, Window
from kikitori.runtime.errors import ConfigError, ModelError
from kikitori.runtime.paths import CONF

MICRO = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "attention_heads": 2, "window_s": 1}


def test_the_byte_tokenizer_decodes_what_it_encoded() -> None:
    tokenizer = byte_tokenizer()
    text = "音楽が、すきです。Ａ ー\n🎵"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_byte_tokenizer_has_whispers_special_tokens() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.set_prefix_tokens(language="ja", task="transcribe")
    start = tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    # Stock code finds a language by its position after the start token.
    assert tokenizer.prefix_tokens[1] == start + 1 + list(LANGUAGES).index("ja")
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == tokenizer.convert_tokens_to_ids("<|endoftext|>")


def test_a_transcript_is_prefix_text_and_end(micro: Whisper) -> None:
    tokens = micro.processor.encode("犬")
    names = micro.processor.tokenizer.convert_ids_to_tokens(tokens)
    assert names[:4] == ["<|startoftranscript|>", "<|ja|>", "<|transcribe|>", "<|notimestamps|>"]
    assert names[-1] == "<|endoftext|>"
    assert len(tokens) == 4 + 3 + 1


def test_real_whisper_base_has_the_known_prefix(whisper_base: Whisper) -> None:
    assert whisper_base.processor.encode("わたしは音楽がすきです。") == [
        *(50258, 50266, 50359, 50363),
        *(9206, 3368, 2849, 3065, 18034, 35479, 5142, 2659, 7016, 4767, 1543),
        50257,
    ]


def test_a_saved_model_encodes_and_generates_as_before(micro: Whisper, tmp_path: Path) -> None:
    micro.save(tmp_path / "model")
    again = load_whisper(str(tmp_path / "model"), "ja", "transcribe")
    features = torch.randn(2, 80, 100)
    arguments = {"language": "ja", "task": "transcribe"}
    micro.model.eval()
    assert torch.equal(micro.model.generate(features, **arguments), again.model.generate(features, **arguments))
    assert again.processor.encode("犬") == micro.processor.encode("犬")
    assert again.processor.frames == micro.processor.frames == 100


def test_the_saved_generation_config_keeps_language_and_task(micro: Whisper, tmp_path: Path) -> None:
    micro.save(tmp_path)
    config = GenerationConfig.from_pretrained(tmp_path)
    assert (config.language, config.task, config.is_multilingual) == ("ja", "transcribe", True)
    assert config.lang_to_id["<|ja|>"] == micro.processor.prefix[1]
    assert WhisperProcessor.from_pretrained(tmp_path).feature_extractor.nb_max_frames == 100


def test_of_a_base_of_several_languages_a_model_of_one_is_rebuilt_as_one(micro: Whisper, tmp_path: Path) -> None:
    micro.set_languages(["ja", "ko"])
    micro.save(tmp_path)
    tuned = load_whisper(str(tmp_path))
    tuned.set_languages(["ja"])  # as a training does
    again = rebuild_whisper(tuned.recipe)
    assert (again.languages, again.model.generation_config.language) == ([], "ja")
    tuned.set_languages(["ja", "de"])
    assert rebuild_whisper(tuned.recipe).languages == ["ja", "de"]


def test_weights_are_fp32_even_if_the_file_is_half_precision(micro: Whisper, tmp_path: Path) -> None:
    micro.save(tmp_path)
    WhisperForConditionalGeneration.from_pretrained(tmp_path).half().save_pretrained(tmp_path)
    assert load_whisper(str(tmp_path), "ja", "transcribe").model.dtype == torch.float32


def test_a_frozen_encoder_gets_no_gradient(micro: Whisper) -> None:
    frozen = build_whisper(**MICRO, language="ja", task="transcribe", freeze="encoder").model
    assert not any(p.requires_grad for p in frozen.model.encoder.parameters())
    assert all(p.requires_grad for p in frozen.model.decoder.parameters())


def test_gradient_checkpointing_changes_memory_and_not_gradients() -> None:
    features, labels = torch.randn(2, 80, 100), torch.randint(0, 250, (2, 9))
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = build_whisper(
            **MICRO, language="ja", task="transcribe", gradient_checkpointing=checkpointing
        ).model.train()
        assert model.is_gradient_checkpointing == checkpointing
        model(features, labels=labels, use_cache=False).loss.backward()
        gradients.append(model.model.encoder.conv1.weight.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("sizes", "fault"),
    [
        ({"d_model": 33}, r"model\.d_model=33: must be even, and a multiple of model\.attention_heads=2"),
        ({"d_model": 32, "attention_heads": 3}, r"model\.d_model=32: .* multiple of model\.attention_heads=3"),
        ({"attention_heads": 0}, r"model\.attention_heads=0: must be a whole number above 0"),
        ({"encoder_layers": 1.5}, r"model\.encoder_layers=1\.5: must be a whole number above 0"),
    ],
)
def test_sizes_that_make_no_model_are_an_error_of_the_configuration(sizes: dict[str, Any], fault: str) -> None:
    """By its class, a search knows not to try them again."""
    with pytest.raises(ConfigError, match=fault):
        build_whisper(**sizes)


def test_a_recipe_rebuilds_the_same_architecture(micro: Whisper) -> None:
    again = rebuild_whisper(micro.recipe)
    again.model.load_state_dict(micro.model.state_dict())
    assert again.processor.prefix == micro.processor.prefix


def test_fields_of_whisper_config_reach_the_model() -> None:
    config = build_whisper(**MICRO, language="ja", task="transcribe", dropout=0.1, apply_spec_augment=True).model.config
    assert (config.dropout, config.apply_spec_augment) == (0.1, True)


def test_a_model_that_cannot_be_loaded_is_named_with_the_remedy() -> None:
    with pytest.raises(ModelError, match=r"model\.name=nonesuch/whisper cannot be loaded(.|\n)*HF_TOKEN"):
        load_whisper("nonesuch/whisper", "ja", "transcribe")


def test_an_unsupported_language_is_named() -> None:
    with pytest.raises(ModelError, match=r"model\.language=xx: micro does not have this language"):
        build_whisper(**MICRO, language="xx", task="transcribe")


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ModelError, match=r"model\.task=sing"):
        build_whisper(**MICRO, language="ja", task="sing")


def test_a_folder_that_lacks_weights_is_refused(micro: Whisper, tmp_path: Path) -> None:
    micro.save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "conv1" not in k}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 2 of Whisper's weights, such as model\.encoder\.conv1\.bias"):
        load_whisper(str(tmp_path), "ja", "transcribe")


def test_a_truncated_weights_file_is_refused(micro: Whisper, tmp_path: Path) -> None:
    micro.save(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_whisper(str(tmp_path), "ja", "transcribe")


@pytest.mark.parametrize("training", [False, True])
def test_the_encoder_equals_the_stock_one_in_the_full_window(training: bool) -> None:
    torch.manual_seed(0)
    whisper = build_whisper(**MICRO, language="ja", task="transcribe", dropout=0.1 if training else 0.0)
    whisper.model.train(training)
    features = torch.randn(2, 80, 100)
    torch.manual_seed(1)
    expected = whisper.model.model.encoder(features).last_hidden_state
    torch.manual_seed(1)
    assert torch.equal(encode(whisper.model, features), expected)


def test_specaugment_masks_as_in_the_stock_model(micro: Whisper) -> None:
    micro.model.config.apply_spec_augment = True
    micro.model.config.mask_time_prob = 0.5
    features, labels = torch.randn(2, 80, 100), torch.tensor([[5, 6], [7, 8]])
    np.random.seed(0)
    expected = micro.model(input_features=features.clone(), labels=labels).encoder_last_hidden_state
    np.random.seed(0)
    assert torch.equal(encode(micro.model, features.clone()), expected)
    assert not torch.equal(encode(micro.model, features.clone()), expected)


def test_a_shorter_window_is_encoded_with_the_first_positional_embeddings(micro: Whisper) -> None:
    """Like in a stock model with a shorter window."""
    features = torch.randn(2, 80, 60)
    short = WhisperForConditionalGeneration(
        WhisperConfig(**{**micro.model.config.to_dict(), "max_source_positions": 30})
    )
    state = micro.model.state_dict()
    state["model.encoder.embed_positions.weight"] = state["model.encoder.embed_positions.weight"][:30]
    short.load_state_dict(state)
    assert torch.equal(encode(micro.model, features), short.model.encoder(features).last_hidden_state)


def test_a_saved_model_and_a_recipe_keep_the_window(micro: Whisper, tmp_path: Path) -> None:
    window = Window((0.4, 0.8), 0.1)
    micro.set_window(window)
    micro.save(tmp_path)
    loaded = load_whisper(str(tmp_path), "ja", "transcribe")
    assert loaded.processor.window == window
    assert loaded.processor.log_mel(torch.zeros(4000)).shape == (80, 40)
    assert rebuild_whisper(micro.recipe).processor.window == window


def test_the_recipe_and_the_saved_model_follow_later_settings(micro: Whisper, tmp_path: Path) -> None:
    assert (micro.processor.window, micro.recipe["window"]) == (FULL, FULL.as_plain())
    assert micro.trained_on is None
    facts = {"longest_s": 5.9, "p95_s": 5.6, "density": 0.28}
    for window, beams in ((Window((0.5,), 0.1), 1), (Window((0.7,), 0.2), 2)):
        micro.set_window(window)
        micro.configure_generation(max_new_tokens=7, num_beams=beams)
        micro.set_trained_on(facts)
        generation = {"max_new_tokens": 7, "num_beams": beams}
        settings = {"generation": generation, "window": window.as_plain(), "trained_on": facts}
        assert micro.recipe == {**micro.arguments, **settings}
        micro.save(tmp_path)
        for again in (rebuild_whisper(micro.recipe), load_whisper(str(tmp_path))):
            assert again.processor.window == window
            assert again.recipe["generation"] == generation
            assert again.trained_on == facts


def test_the_defaults_are_those_of_the_micro_model() -> None:
    conf = OmegaConf.load(CONF / "model" / "micro.yaml")
    defaults = {name: parameter.default for name, parameter in signature(build_whisper).parameters.items()}
    assert {key: value for key, value in conf.items() if key != "_target_"} == {
        key: defaults[key] for key in conf if key != "_target_"
    }


def test_a_stock_model_pads_every_clip_to_its_full_window(micro: Whisper) -> None:
    assert micro.processor.window == FULL
    assert micro.processor.log_mel(torch.zeros(400)).shape == (80, 100)


def test_the_encoder_of_real_weights_equals_the_stock_one(whisper_base: Whisper) -> None:
    whisper_base.model.eval()
    features = torch.randn(2, 80, 3000)
    with torch.no_grad():
        expected = whisper_base.model.model.encoder(features).last_hidden_state
        assert torch.equal(encode(whisper_base.model, features), expected)


def test_the_limit_per_second_belongs_to_a_use_of_a_model_and_is_not_saved(micro: Whisper, tmp_path: Path) -> None:
    assert micro.max_tokens_per_s == "auto"
    assert micro.token_s(micro.processor.encode("あ")[4]) == pytest.approx(1 / 20, abs=0.01)
    micro.configure_generation(max_new_tokens=40, num_beams=1, max_tokens_per_s=8.0)
    assert micro.token_s(0) == 1 / 8
    micro.configure_generation(max_new_tokens=None, num_beams=None, max_tokens_per_s=None)
    assert micro.token_s(0) == 1 / 8
    micro.save(tmp_path)
    for loaded in (load_whisper(str(tmp_path)), rebuild_whisper(micro.recipe)):
        assert loaded.max_tokens_per_s == "auto"
        assert loaded.model.generation_config.max_new_tokens == 40
    micro.configure_generation(max_new_tokens=None, num_beams=None, max_tokens_per_s=math.inf)
    assert micro.token_s(0) == 0


def test_a_limit_that_earlier_versions_saved_is_not_used(micro: Whisper, tmp_path: Path) -> None:
    """It was learnt from one corpus, and cut the transcripts of others."""
    micro.save(tmp_path)
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_tokens_per_s": 1.09}))
    recipe = {**micro.recipe, "generation": {**micro.recipe["generation"], "max_tokens_per_s": 1.09}}
    for loaded in (load_whisper(str(tmp_path)), rebuild_whisper(recipe)):
        assert loaded.max_tokens_per_s == "auto"


def hub(micro: Whisper, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes the Hub's cache as after a download: one name with two revisions that differ in every file."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    for commit, branch, window_s in (("a" * 40, "main", 1), ("b" * 40, "other", 2)):
        whisper = build_whisper(
            **{**MICRO, "window_s": window_s}, language="ja", task="transcribe", max_label_tokens=64
        )
        whisper.configure_generation(max_new_tokens=10 * window_s, num_beams=1)
        folder = cache / "models--some--whisper"
        whisper.save(folder / "snapshots" / commit)
        config = json.loads((folder / "snapshots" / commit / "tokenizer_config.json").read_text(encoding="utf-8"))
        config["model_max_length"] = 100 * window_s
        (folder / "snapshots" / commit / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / branch).write_text(commit)


@pytest.mark.parametrize(("revision", "window_s"), [(None, 1), ("main", 1), ("other", 2), ("a" * 40, 1), ("b" * 40, 2)])
def test_a_pinned_revision_reaches_model_tokenizer_and_generation_config(
    micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None, window_s: int
) -> None:
    hub(micro, tmp_path, monkeypatch)
    loaded = load_whisper("some/whisper", "ja", "transcribe", revision=revision)
    assert loaded.processor.window_s == window_s
    assert loaded.model.config.max_source_positions == 50 * window_s
    assert loaded.model.model.encoder.embed_positions.weight.shape[0] == 50 * window_s
    assert loaded.model.generation_config.max_new_tokens == 10 * window_s
    assert loaded.processor.tokenizer.model_max_length == 100 * window_s
    # A checkpoint's recipe names the same revision.
    assert loaded.recipe["revision"] == revision
    assert rebuild_whisper(loaded.recipe).processor.window_s == window_s


def test_an_unknown_revision_is_named_and_none_is_for_a_folder(
    micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub(micro, tmp_path, monkeypatch)
    with pytest.raises(ModelError, match=r"model\.name=some/whisper cannot be loaded"):
        load_whisper("some/whisper", "ja", "transcribe", revision="absent")
    micro.save(tmp_path / "model")
    with pytest.raises(ModelError, match=r"model\.revision=main is for a name on the Hub"):
        load_whisper(str(tmp_path / "model"), "ja", "transcribe", revision="main")


def test_weights_are_saved_and_loaded_as_safetensors_only(micro: Whisper, tmp_path: Path) -> None:
    micro.save(tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").glob("*model*") if path.suffix != ".json"] == [
        "model.safetensors"
    ]
    torch.save(load_file(tmp_path / "model" / "model.safetensors"), tmp_path / "model" / "pytorch_model.bin")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"Only safetensors are loaded: a pytorch_model\.bin may run code"):
        load_whisper(str(tmp_path / "model"), "ja", "transcribe")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quantization_config", {"quant_method": "torchao", "quant_type": {"default": {}}}),
        ("transformers_weights", "adapter_model.bin"),
    ],
)
def test_a_config_that_needs_another_loader_is_refused(micro: Whisper, tmp_path: Path, key: str, value: object) -> None:
    change_config(micro, tmp_path, {key: value})
    with pytest.raises(ModelError, match=f"config.json has {key}"):
        load_whisper(str(tmp_path), "ja", "transcribe")


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_an_attention_named_by_config_json_is_not_downloaded(micro: Whisper, tmp_path: Path, key: str) -> None:
    change_config(micro, tmp_path, {key: "stranger/kernel"})
    assert load_whisper(str(tmp_path), "ja", "transcribe").model.config._attn_implementation == "sdpa"


def change_config(micro: Whisper, folder: Path, changes: dict[str, object]) -> None:
    micro.save(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")


@pytest.mark.parametrize("key", ["trust_remote_code", "config", "attn_implementation", "gguf_file", "subfolder"])
def test_a_recipe_passes_no_unknown_argument_to_transformers(micro: Whisper, tmp_path: Path, key: str) -> None:
    micro.save(tmp_path)
    recipe = load_whisper(str(tmp_path), "ja", "transcribe").recipe
    with pytest.raises(ModelError, match=f"recipe has {key}, which"):
        rebuild_whisper({**recipe, key: "x"})
