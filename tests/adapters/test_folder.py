"""The folder of an adapter: read by peft and by kikitori, written by either, or by a stranger."""

import json
import os
from pathlib import Path
from typing import Any

import adapted
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kikitori.adapters import layers
from kikitori.adapters.folder import read_adapter
from kikitori.adapters.settings import TARGETS, AdaLora, Lora
from kikitori.model import source
from kikitori.model.loading import build_whisper, load_whisper
from kikitori.model.whisper import Whisper
from kikitori.model.window import Window
from kikitori.runtime.errors import ModelError
from kikitori.steps.builders import load_checkpoint

MICRO: dict[str, Any] = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "attention_heads": 2, "window_s": 1}
EVERY = TARGETS[:6]
KINDS = [Lora(4, 8), Lora(4, 8, kind="rslora"), Lora(4, 8, kind="dora", targets=EVERY), AdaLora(4, targets=EVERY)]
Q = "base_model.model.model.decoder.layers.0.self_attn.q_proj"


def losses(whisper: Whisper) -> Tensor:
    whisper.model.eval()
    with torch.no_grad():
        return adapted.losses(whisper)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    build_whisper(**MICRO).save(tmp_path / "base")
    return tmp_path / "base"


def trained(base: Path, adapter: Lora, **settings: Any) -> Whisper:
    pytest.importorskip("peft", reason=f"an adapter {layers.EXTRA}")
    whisper = load_whisper(str(base), "ja", **settings)
    whisper.add_adapter(adapter)
    adapted.disturb(whisper)
    return whisper


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    """A plain adapter of the base, written without peft."""
    return write(tmp_path / "adapter", {"base_model_name_or_path": str(base)})


def write(folder: Path, changes: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none", **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if tensors is None:
        tensors = {f"{Q}.lora_A.weight": torch.ones(4, 32), f"{Q}.lora_B.weight": torch.ones(32, 4)}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("adapter", KINDS, ids=lambda adapter: adapter.kind)
def test_peft_and_kikitori_read_what_was_trained(base: Path, tmp_path: Path, adapter: Lora) -> None:
    whisper = trained(base, adapter)
    expected = losses(whisper)
    whisper.save_adapter(tmp_path / "adapter")
    whisper.merge_adapter()
    again = load_whisper(str(tmp_path / "adapter"))
    assert torch.equal(losses(again), losses(whisper))
    from peft import PeftModel

    plain = load_whisper(str(base))
    PeftModel.from_pretrained(plain.model, str(tmp_path / "adapter"))
    assert torch.equal(losses(plain), expected)


@pytest.mark.parametrize("kind", ["lora", "dora", "adalora"])
def test_an_adapter_that_peft_saved_is_read(base: Path, tmp_path: Path, kind: str) -> None:
    """With the task type and the names of targets that most people use; AdaLoRA's with pruned ranks."""
    pytest.importorskip("peft", reason=f"an adapter {layers.EXTRA}")
    from peft import AdaLoraConfig, LoraConfig, get_peft_model

    shared: dict[str, Any] = {"target_modules": ["q_proj", "fc1"], "lora_alpha": 8, "lora_dropout": 0.1}
    config: Any = LoraConfig(r=4, use_dora=kind == "dora", task_type="SEQ_2_SEQ_LM", **shared)
    if kind == "adalora":
        config = AdaLoraConfig(init_r=4, total_step=9, **shared)
    peft = load_whisper(str(base))
    wrapped = get_peft_model(peft.model, config)
    with torch.no_grad():
        for name, weight in peft.model.named_parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn_like(weight))
            if name.endswith("lora_E.default"):
                weight[1:] = 0
                left = wrapped.peft_config["default"].rank_pattern or {}
                wrapped.peft_config["default"].rank_pattern = {**left, name: [True, False, False, False]}
    wrapped.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    again = load_whisper(str(tmp_path / "adapter"), base=str(base))
    assert losses(again) == pytest.approx(losses(peft), rel=1e-5)


def test_the_folder_names_its_base_and_keeps_language_and_windows(base: Path, tmp_path: Path) -> None:
    whisper = trained(base, Lora(4), freeze="encoder")
    whisper.set_window(Window((0.5,), 0.1))
    whisper.save_adapter(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    # With a frozen encoder q_proj would stand for too many layers.
    assert all(".decoder." in name for name in config["target_modules"])
    facts = json.loads((tmp_path / "adapter/kikitori.json").read_text())
    (tmp_path / "adapter/kikitori.json").write_text(json.dumps(facts | {"language": "de", "task": "translate"}))
    again = load_whisper(str(tmp_path / "adapter"))
    assert (again.processor.language, again.processor.task) == ("de", "translate")
    assert again.processor.window == Window((0.5,), 0.1)
    assert load_whisper(str(tmp_path / "adapter"), "ja").processor.language == "ja"


def test_an_adapter_needs_no_peft_to_be_read(folder: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "is_available", lambda: False)
    changed = load_whisper(str(folder)).model.model.decoder.layers[0].self_attn.q_proj.weight
    before = load_whisper(str(base)).model.model.decoder.layers[0].self_attn.q_proj.weight
    assert torch.equal(changed, before + 8.0)  # 8 / 4 times a sum of four ones


def test_evaluate_reads_an_adapter_as_a_checkpoint(folder: Path, base: Path) -> None:
    model = {"language": None, "task": None, "base": None}
    for checkpoint in (folder, base):
        config = {"checkpoint": str(checkpoint), "model": model, "data": {"language": "ja"}}
        name = load_checkpoint(config).arguments["name"]
        assert name == str(checkpoint)


def test_a_base_that_an_adapter_names_is_not_downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "hub_is_reachable", lambda: pytest.fail("a request was made"))
    write(folder, {"base_model_name_or_path": "stranger/whisper"})
    with pytest.raises(
        ModelError, match=r"adapter of stranger/whisper, which was not downloaded .* model\.base=stranger/whisper"
    ):
        load_whisper(str(folder))


@pytest.mark.parametrize("named", [None, "/nonesuch", "https://example.org/whisper", "~", "../nonesuch"])
def test_a_base_that_is_no_model_is_asked_for(folder: Path, named: str | None) -> None:
    write(folder, {"base_model_name_or_path": named})
    with pytest.raises(ModelError, match=r"pass (its base|the model) as model\.base"):
        load_whisper(str(folder))


def test_the_base_of_an_adapter_is_a_model(folder: Path, base: Path) -> None:
    with pytest.raises(ModelError, match="is an adapter itself"):
        load_whisper(str(folder), base=str(folder))
    with pytest.raises(ModelError, match=r"model\.base=x is for an adapter, and model\.name=.* is none"):
        load_whisper(str(base), base="x")


def test_an_adapter_of_another_base_is_refused_with_both_names(folder: Path, base: Path, tmp_path: Path) -> None:
    build_whisper(**MICRO | {"d_model": 16}).save(tmp_path / "narrow")
    both = f"{folder}, which was trained on {base}, does not fit {tmp_path}/narrow: "
    with pytest.raises(
        ModelError, match=f"{both}its .*q_proj has 32 inputs and 32 outputs, that model's 16 and 16; pass"
    ):
        load_whisper(str(folder), base=str(tmp_path / "narrow"))
    tensors = load_file(folder / "adapter_model.safetensors")
    write(folder, {}, {name.replace("layers.0", "layers.7"): value for name, value in tensors.items()})
    with pytest.raises(ModelError, match=r"does not fit .*: it changes model\.decoder\.layers\.7\.self_attn\.q_proj"):
        load_whisper(str(folder), base=str(base))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "peft_type"),
        ({"r": 10**9}, "adapter_config.json.r"),
        ({"r": 8}, "has a rank of 4, but adapter_config.json one of 8"),
        ({"lora_alpha": "high"}, "lora_alpha"),
        ({"lora_alpha": 1e300}, "lora_alpha"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"modules_to_save": ["proj_out"]}, r"modules_to_save=\['proj_out'\], which is not supported"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa, which is not supported"),
        ({"bias": "all"}, "bias=all"),
        ({"something_new": True}, "something_new=True"),
        ({"use_rslora": True, "use_dora": True}, "both use_rslora and use_dora"),
        ({"base_model_name_or_path": ["a"]}, "base_model_name_or_path"),
        ({"revision": "../../main"}, "revision"),
        ({"use_dora": True}, "lacks lora_magnitude_vector"),
    ],
)
def test_a_configuration_that_is_not_supported_is_refused(folder: Path, changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ModelError, match=fault):
        read_adapter(write(folder, changes))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (f"{Q}.lora_A.weight", (4,)),
        (f"{Q}.lora_A.weight", (0, 32)),
        (f"{Q}.lora_A.weight", (32, 4, 1)),
        (f"{Q}.lora_B.weight", (32, 5)),
        (f"{Q}.lora_B.weight", ()),
        (f"{Q}.lora_E", (4, 1)),
        (f"{Q}.weight", (32, 32)),
        ("model.decoder.embed_tokens.weight", (4, 4)),
        (f"{Q}.lora_A", (4, 32)),
    ],
)
def test_tensors_that_are_no_adapter_are_refused(folder: Path, name: str, shape: tuple[int, ...]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors") | {name: torch.ones(shape)}
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors|do not fit each other"):
        read_adapter(write(folder, {}, tensors))


def test_weights_that_are_not_finite_or_no_numbers_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    for wrong in (tensors[f"{Q}.lora_A.weight"] * torch.nan, tensors[f"{Q}.lora_A.weight"].int()):
        with pytest.raises(ModelError, match=r"not finite|of type I32"):
            read_adapter(write(folder, {}, tensors | {f"{Q}.lora_A.weight": wrong}))


def test_only_regular_safetensors_are_read(folder: Path, tmp_path: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    torch.save({}, folder / "adapter_model.bin")
    with pytest.raises(ModelError, match="adapters in other formats may run code"):
        read_adapter(folder)
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="no regular file"):
        read_adapter(folder)
    weights.unlink()
    os.mkfifo(weights)
    with pytest.raises(ModelError, match="no regular file"):
        read_adapter(folder)
    weights.unlink()
    weights.write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match="is damaged"):
        read_adapter(folder)


@pytest.mark.parametrize(
    "facts",
    [
        {"window": {"edges_s": "x"}},
        {"generation": {"num_beams": 10**9}},
        {"generation": {"num_beams": 10**9, "max_new_tokens": 5}},
        {"trained_on": {"p95_s": -1}},
        {"timestamps": {"texts": 5}},
        {"languages": ["xx"], "language": "ja"},
        [],
    ],
    ids=str,
)
def test_hostile_facts_are_an_error_that_names_them(folder: Path, facts: Any) -> None:
    (folder / "kikitori.json").write_text(json.dumps(facts))
    with pytest.raises(ModelError, match=rf"^the adapter {folder}[: ].*kikitori\.json"):
        load_whisper(str(folder))
