"""Adapters in a model: what is trained, and that loss and gradients are those they should be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import disturb, losses

from kikitori.adapters import layers
from kikitori.adapters.settings import TARGETS, AdaLora, Lora
from kikitori.audio.waveform import decode
from kikitori.config.validation import check_config
from kikitori.inference.greedy import greedy
from kikitori.model.loading import build_whisper, load_whisper, rebuild_whisper
from kikitori.model.whisper import Whisper, encode
from kikitori.model.window import Window
from kikitori.optim.optimizers import parameter_groups
from kikitori.runtime.errors import ConfigError, ModelError

MICRO: dict[str, Any] = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "attention_heads": 2, "window_s": 1}
EVERY = TARGETS[:6]
KINDS = [Lora(4, 8), Lora(4, 8, kind="rslora"), Lora(4, 8, kind="dora", targets=EVERY), AdaLora(4, targets=EVERY)]

needs_peft = pytest.mark.skipif(not layers.is_available(), reason=f"an adapter {layers.EXTRA}")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def whisper() -> Whisper:
    return build_whisper(**MICRO)


@needs_peft
@pytest.mark.parametrize("adapter", KINDS, ids=lambda adapter: adapter.kind)
def test_a_fresh_adapter_gives_the_losses_of_the_base_bit_for_bit(whisper: Whisper, adapter: Lora) -> None:
    before = losses(whisper)
    whisper.add_adapter(adapter)
    assert torch.equal(losses(whisper), before)
    disturb(whisper)
    assert not torch.equal(losses(whisper), before)


@needs_peft
@pytest.mark.parametrize("adapter", KINDS, ids=lambda adapter: adapter.kind)
def test_a_merged_model_gives_the_losses_of_the_unmerged_one(whisper: Whisper, adapter: Lora, tmp_path: Path) -> None:
    names = list(whisper.model.state_dict())
    whisper.add_adapter(adapter)
    disturb(whisper)
    before = losses(whisper)
    whisper.merge_adapter()
    torch.testing.assert_close(losses(whisper), before, rtol=1e-5, atol=0)
    # It is a plain model again.
    assert list(whisper.model.state_dict()) == names
    assert "adapter" not in whisper.recipe
    whisper.save(tmp_path)
    assert torch.equal(losses(load_whisper(str(tmp_path))), losses(whisper))


@needs_peft
@pytest.mark.parametrize("adapter", KINDS, ids=lambda adapter: adapter.kind)
def test_the_weight_that_is_merged_is_that_of_peft(whisper: Whisper, adapter: Lora) -> None:
    whisper.add_adapter(adapter)
    disturb(whisper)
    peft = rebuild_whisper(whisper.recipe)
    peft.model.load_state_dict(whisper.model.state_dict())
    whisper.merge_adapter()
    for name in peft.arguments["adapter"]["modules"]:
        layer: Any = peft.model.get_submodule(name)
        layer.merge()
        assert torch.equal(layer.base_layer.weight, whisper.model.get_submodule(name).weight)


@needs_peft
@pytest.mark.parametrize("adapter", KINDS, ids=lambda adapter: adapter.kind)
def test_gradients_with_checkpointing_equal_those_without(adapter: Lora) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        whisper = build_whisper(**MICRO, gradient_checkpointing=checkpointing)
        whisper.add_adapter(adapter)
        disturb(whisper)
        whisper.model.train()
        losses(whisper).sum().backward()
        gradients.append({name: w.grad for name, w in whisper.model.named_parameters() if w.requires_grad})
    assert all(gradient is not None for gradient in gradients[0].values())
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@needs_peft
@pytest.mark.parametrize("adapter", [Lora(4, dropout=0.5), AdaLora(4, dropout=0.5)], ids=lambda adapter: adapter.kind)
def test_dropout_acts_in_training_only(whisper: Whisper, adapter: Lora) -> None:
    whisper.add_adapter(adapter)
    disturb(whisper)
    assert not torch.equal(losses(whisper), losses(whisper))
    whisper.model.eval()
    assert torch.equal(losses(whisper), losses(whisper))


@needs_peft
def test_the_optimizer_gets_the_adapter_and_nothing_else(whisper: Whisper) -> None:
    whisper.add_adapter(Lora(4, targets=["q_proj"], kind="dora"))
    matrices, vectors = (group["params"] for group in parameter_groups(whisper.model, 0.1))
    # In six attention blocks: A, B and the norms.
    assert [tuple(p.shape) for p in matrices] == [(4, 32), (32, 4)] * 6
    assert [tuple(p.shape) for p in vectors] == [(32,)] * 6


@needs_peft
def test_with_a_frozen_encoder_the_decoder_alone_gets_adapters() -> None:
    whisper = build_whisper(**MICRO, freeze="encoder")
    whisper.add_adapter(Lora(4))
    assert all(name.startswith("model.decoder.") for name in whisper.arguments["adapter"]["modules"])
    assert not any(p.requires_grad for p in whisper.model.model.encoder.parameters())
    # A recipe does not know what was frozen, and rebuilds the same layers.
    rebuild_whisper(whisper.recipe).model.load_state_dict(whisper.model.state_dict())


@needs_peft
def test_a_target_names_one_attention_or_all(whisper: Whisper) -> None:
    whisper.add_adapter(Lora(4, targets=["encoder_attn.q_proj"]))
    modules = whisper.arguments["adapter"]["modules"]
    assert modules == [f"model.decoder.layers.{number}.encoder_attn.q_proj" for number in range(2)]


def test_an_adapter_of_a_model_with_everything_frozen_is_refused(whisper: Whisper) -> None:
    whisper.model.requires_grad_(False)
    with pytest.raises(ModelError, match=r"adapter\.targets=\['q_proj', 'v_proj'\]: all of these layers are frozen"):
        whisper.add_adapter(Lora())


@needs_peft
def test_a_model_has_one_adapter_which_is_merged_before_it_is_saved(whisper: Whisper, tmp_path: Path) -> None:
    whisper.add_adapter(Lora(4))
    with pytest.raises(ModelError, match="merge it first"):
        whisper.add_adapter(Lora(4))
    with pytest.raises(ModelError, match="merge it first"):
        whisper.save(tmp_path)
    whisper.merge_adapter()
    with pytest.raises(ModelError, match="no adapter to save"):
        whisper.save_adapter(tmp_path)


def test_a_layer_that_the_model_does_not_have_is_named(whisper: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft", reason=f"an adapter {layers.EXTRA}")
    with pytest.raises(ModelError, match=r"changes model\.decoder\.layers\.9\.fc1, and the model has no such linear"):
        whisper.add_adapter(Lora(4), ["model.decoder.layers.9.fc1"])


def test_without_peft_the_error_names_the_extra(whisper: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"pip install 'kikitori\[peft\]'"):
        whisper.add_adapter(Lora())
    node = {"_target_": "kikitori.Lora", "rank": 4, "targets": ["q_proj"]}
    with pytest.raises(ConfigError, match=r"adapter: needs the package peft: pip install 'kikitori\[peft\]'"):
        check_config({"callbacks": {}, "adapter": node})


@needs_peft
@pytest.mark.long
def test_real_whisper_base_writes_the_same_texts_merged_and_unmerged(whisper_base: Whisper, speech: Path) -> None:
    whisper = load_whisper(whisper_base.arguments["name"], "ja")
    whisper.add_adapter(Lora(16, targets=EVERY))
    with torch.no_grad():
        for tensors in layers.adapter_tensors(whisper.model).values():
            tensors["lora_B"].normal_(std=0.005)
    whisper.model.eval()
    windows = Window((4, 6, 8, 10), 1)
    whisper.set_window(windows)
    features = [whisper.processor.log_mel(decode(clip)) for clip in sorted((speech / "clips").iterdir())]

    def texts() -> list[list[int]]:
        with torch.inference_mode():
            states = (encode(whisper.model, one[None]) for one in features)
            return [greedy(whisper.model, one, whisper.processor.prefix, 60)[0].tokens for one in states]

    unmerged = texts()
    whisper.merge_adapter()
    assert texts() == unmerged
    assert len(unmerged) >= 60
    assert sum(map(bool, unmerged)) > 50
