"""Layers in 8 or 4 bits: that they are bitsandbytes' own, train adapters exactly, and restore the same bits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import disturb, losses
from torch import Tensor, nn

from kikitori.adapters import layers, quantised
from kikitori.adapters.quantised import QuantisedLinear, dequantise, quantise, quantised_layers
from kikitori.adapters.settings import AdaLora, Lora
from kikitori.config.validation import check_config
from kikitori.model.loading import build_whisper, load_whisper, rebuild_whisper
from kikitori.model.whisper import Whisper
from kikitori.runtime.errors import ConfigError, ModelError

MICRO: dict[str, Any] = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "attention_heads": 2, "window_s": 1}
EVERY = ["q_proj", "v_proj", "fc1"]
KINDS = [Lora(4, 8, base_bits=8), Lora(4, targets=EVERY, kind="dora", base_bits=4), AdaLora(4, base_bits=4)]
BITS = (8, 4)

needs_bitsandbytes = pytest.mark.skipif(not quantised.is_available(), reason=f"a base in 8 bits {quantised.EXTRA}")
needs_both = pytest.mark.skipif(
    not (layers.is_available() and quantised.is_available()), reason=f"an adapter {layers.EXTRA}, and bitsandbytes"
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def trained(adapter: Lora) -> Whisper:
    """A model whose adapter is no longer a fresh one."""
    whisper = build_whisper(**MICRO)
    whisper.add_adapter(adapter)
    disturb(whisper)
    return whisper


@needs_bitsandbytes
def test_four_bits_are_those_of_bitsandbytes_own_layer() -> None:
    import bitsandbytes as bnb

    layer, inputs = nn.Linear(128, 96), torch.randn(3, 5, 128)
    own = bnb.nn.Linear4bit(128, 96, quant_type="nf4", compress_statistics=False)
    own.load_state_dict(layer.state_dict())
    ours = QuantisedLinear(layer, 4)
    assert torch.equal(ours(inputs), own.to("cpu")(inputs))
    assert torch.equal(ours.codes, own.weight.data)
    assert ours.codes.nbytes + ours.scales.nbytes == 128 * 96 * 4.5 / 8


@needs_bitsandbytes
def test_eight_bits_are_those_of_bitsandbytes_own_layer() -> None:
    import bitsandbytes as bnb

    layer = nn.Linear(128, 96)
    own = bnb.nn.Int8Params(layer.weight.detach().clone(), requires_grad=False).to("cpu")
    ours = QuantisedLinear(layer, 8)
    assert torch.equal(ours.codes, own.CB)
    assert torch.equal(ours.scales, own.SCB)
    # Rounded to the nearest of 255 values per output, after rounding to fp16.
    assert ((ours.weight - layer.weight).abs() <= 0.6 * ours.scales[:, None] / 127).all()


@needs_bitsandbytes
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(128, 64), (33, 7), (32, 96)])
def test_a_state_dict_has_plain_weights_and_restores_the_same_bits(bits: Any, shape: tuple[int, int]) -> None:
    first = QuantisedLinear(nn.Linear(*shape), bits)
    state = first.state_dict()
    assert {name: (value.dtype, value.shape) for name, value in state.items()} == {
        "weight": (torch.float32, torch.Size(shape[::-1])),
        "bias": (torch.float32, torch.Size(shape[1:])),
    }
    second = QuantisedLinear(nn.Linear(*shape), bits)
    second.load_state_dict(state)
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.scales, second.scales)
    assert torch.equal(first.weight, second.weight)


@needs_bitsandbytes
def test_weights_of_another_shape_or_kind_are_not_stored() -> None:
    layer = QuantisedLinear(nn.Linear(8, 4), 4)
    bias, weight, before = torch.zeros(4), layer.weight, layer.codes.clone()
    with pytest.raises(RuntimeError, match=r"weight is of shape \[8, 4\] and torch.float32, not \[4, 8\] and float"):
        layer.load_state_dict({"weight": torch.zeros(8, 4), "bias": bias})
    with pytest.raises(RuntimeError, match=r"weight is of shape \[4, 8\] and torch.uint8"):
        layer.load_state_dict({"weight": torch.zeros(4, 8, dtype=torch.uint8), "bias": bias})
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict({"bias": bias})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        layer.load_state_dict({"weight": weight, "bias": bias, "codes": before})
    assert torch.equal(layer.codes, before)


@needs_bitsandbytes
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_outputs_and_gradients_are_those_of_a_plain_layer_with_the_same_weight(bits: Any, bf16: bool) -> None:
    layer = QuantisedLinear(nn.Linear(64, 32), bits)
    inputs, pulls = torch.randn(2, 3, 64), torch.randn(2, 3, 32)
    found = []
    for one in (layer, layer.as_linear()):
        leaf = inputs.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = one(leaf)
        (outputs * pulls).sum().backward()
        found.append((outputs, leaf.grad))
    (outputs, gradient), (expected, expected_gradient) = found
    assert outputs.dtype == expected.dtype
    assert torch.equal(outputs, expected)
    assert gradient is not None
    torch.testing.assert_close(gradient, expected_gradient)


@needs_bitsandbytes
def test_nothing_is_kept_for_the_backward_pass() -> None:
    kept: list[Tensor] = []
    layer, inputs = QuantisedLinear(nn.Linear(64, 32), 4), torch.randn(2, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value):
        layer(inputs)
    assert kept == []


@needs_both
@pytest.mark.parametrize("adapter", KINDS, ids=lambda adapter: f"{adapter.kind}-{adapter.base_bits}")
def test_a_fresh_adapter_gives_the_losses_of_the_base_in_these_bits(adapter: Lora) -> None:
    base = build_whisper(**MICRO)
    in_32_bits = losses(base)
    quantise(base.model, layers.linears(base.model), adapter.base_bits)
    torch.manual_seed(0)
    whisper = build_whisper(**MICRO)
    whisper.add_adapter(adapter)
    assert torch.equal(losses(whisper), losses(base))
    assert not torch.equal(losses(whisper), in_32_bits)


@needs_both
@pytest.mark.parametrize("adapter", KINDS, ids=lambda adapter: f"{adapter.kind}-{adapter.base_bits}")
def test_a_merged_model_computes_what_the_unmerged_one_does(adapter: Lora) -> None:
    plain = build_whisper(**MICRO)
    whisper = trained(adapter)
    assert len(quantised_layers(whisper.model)) == len(layers.linears(plain.model)) == 16
    in_32_bits = trained(replace(adapter, base_bits=None))
    assert whisper.num_parameters == in_32_bits.num_parameters == in_32_bits.model.num_parameters()
    before = losses(whisper)
    whisper.merge_adapter()
    torch.testing.assert_close(losses(whisper), before, rtol=1e-5, atol=0)
    # It is a plain model in fp32 again.
    assert not quantised_layers(whisper.model)
    state = plain.model.state_dict()
    assert {k: (v.shape, v.dtype) for k, v in whisper.model.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in state.items()
    }


@needs_both
@pytest.mark.parametrize("adapter", KINDS, ids=lambda adapter: f"{adapter.kind}-{adapter.base_bits}")
def test_a_checkpoint_restores_the_same_model(adapter: Lora) -> None:
    whisper = trained(adapter)
    torch.manual_seed(1)  # another random base, whose weights are all replaced
    restored = rebuild_whisper(whisper.recipe)
    restored.model.load_state_dict(whisper.model.state_dict())
    assert torch.equal(losses(restored), losses(whisper))
    stored, again = quantised_layers(whisper.model), quantised_layers(restored.model)
    assert all(torch.equal(layer.codes, again[name].codes) for name, layer in stored.items())


@needs_both
def test_an_adapters_folder_is_merged_into_the_base_it_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_whisper(**MICRO).save(tmp_path / "base")
    whisper = load_whisper(str(tmp_path / "base"))
    whisper.add_adapter(Lora(4, base_bits=4))
    whisper.model.model.decoder.layers[0].self_attn.q_proj.lora_B.default.weight.data.normal_()
    whisper.save_adapter(tmp_path / "adapter")
    whisper.merge_adapter()
    read = load_whisper(str(tmp_path / "adapter"))
    for name, value in whisper.model.state_dict().items():
        assert torch.equal(read.model.state_dict()[name], value), name
    monkeypatch.setattr(quantised, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"base_bits=4 needs the package bitsandbytes: pip install 'kikitori\[bits"):
        load_whisper(str(tmp_path / "adapter"))
    facts = tmp_path / "adapter/kikitori.json"
    facts.write_text(facts.read_text(encoding="utf-8").replace('"base_bits": 4', '"base_bits": 3'), encoding="utf-8")
    with pytest.raises(ModelError, match=r"kikitori.json.base_bits is '3'"):
        load_whisper(str(tmp_path / "adapter"))


@needs_bitsandbytes
def test_a_model_is_dequantised_in_place() -> None:
    whisper = build_whisper(**MICRO)
    quantise(whisper.model, layers.linears(whisper.model), 8)
    before = losses(whisper)
    dequantise(whisper.model)
    assert not quantised_layers(whisper.model)
    assert torch.equal(losses(whisper), before)


@pytest.mark.parametrize("bits", [16, 0, "4"])
def test_other_numbers_of_bits_are_refused(bits: Any) -> None:
    with pytest.raises(ConfigError, match=f"adapter.base_bits={bits}: must be 8, 4 or null"):
        Lora(4, base_bits=bits)


def test_without_bitsandbytes_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised, "is_available", lambda: False)
    whisper = build_whisper(**MICRO)
    with pytest.raises(ModelError, match=r"adapter.base_bits=4 needs the package bitsandbytes: pip install"):
        quantise(whisper.model, layers.linears(whisper.model), 4)
    node = {"_target_": "kikitori.Lora", "targets": ["q_proj"], "base_bits": 4}
    with pytest.raises(ConfigError, match=r"adapter.base_bits: 4 needs the package bitsandbytes: pip install"):
        check_config({"callbacks": {}, "adapter": node})
