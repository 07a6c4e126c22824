from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from kikitori.data import encoder_cache
from kikitori.data.collate import collate
from kikitori.data.encoder_cache import EncoderCache, check_cacheable
from kikitori.model.whisper import Whisper, encode
from kikitori.runtime.errors import ConfigError
from kikitori.training.loss import clip_losses

FRAMES = {"a": 60, "b": 100, "c": 60}
DIGESTS = ["1", "2", "3"]


def examples(whisper: Whisper) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    common = {"tokens": whisper.processor.encode("犬"), "text": "犬", "seconds": 0.5}
    features = {name: torch.randn(80, frames, generator=generator) for name, frames in FRAMES.items()}
    return [{**common, "clip": name, "input_features": log_mel} for name, log_mel in features.items()]


@pytest.fixture
def frozen(micro: Whisper) -> Whisper:
    micro.model.model.encoder.requires_grad_(False)
    return micro


def build(whisper: Whisper, folder: Path, precision: Any = "32", digests: list[str] = DIGESTS) -> EncoderCache:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(default_root_dir=folder, accelerator="cpu", precision=precision, **quiet)
    rows: Any = examples(whisper)
    loader = torch.utils.data.DataLoader(rows, batch_size=2, collate_fn=collate)
    return encoder_cache.build_encoder_cache(trainer, whisper.model, loader, FRAMES, digests, folder)


def test_cached_states_equal_the_encoders_output(frozen: Whisper, tmp_path: Path) -> None:
    cache = build(frozen, tmp_path)
    frozen.model.eval()
    for row in examples(frozen):
        expected = encode(frozen.model, row["input_features"][None])[0]
        assert cache[row["clip"]].shape == (FRAMES[row["clip"]] // 2, 32)
        torch.testing.assert_close(cache[row["clip"]], expected)


def test_states_are_stored_in_the_precision_that_the_decoder_rounds_them_to(frozen: Whisper, tmp_path: Path) -> None:
    assert build(frozen, tmp_path, "bf16-mixed")["a"].dtype == torch.bfloat16
    assert build(frozen, tmp_path)["a"].dtype == torch.float32
    assert len(list(tmp_path.glob("*.states"))) == 2


def test_a_model_that_is_moved_for_its_cache_can_still_be_trained(
    frozen: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a move to the GPU, which makes new tensors."""
    monkeypatch.setattr(frozen.model, "to", lambda device: frozen.model.double().float(), raising=False)
    states = build(frozen, tmp_path)["b"]
    labels = torch.tensor([frozen.processor.encode("犬")[1:]])
    clip_losses(frozen.model, states[None], labels).sum().backward()


def test_states_are_computed_once_and_again_if_anything_differs(frozen: Whisper, tmp_path: Path) -> None:
    passes: list[int] = []
    frozen.model.model.encoder.layers[0].register_forward_hook(lambda *arguments: passes.append(1))
    build(frozen, tmp_path)
    computed = len(passes)
    assert computed > 0
    build(frozen, tmp_path)
    assert len(passes) == computed
    build(frozen, tmp_path, digests=["1", "2", "4"])
    assert len(passes) == 2 * computed
    with torch.no_grad():
        frozen.model.model.encoder.conv1.weight[0, 0, 0] += 1
    build(frozen, tmp_path)
    assert len(passes) == 3 * computed
    assert {path.suffix for path in tmp_path.iterdir()} == {".states"}


def test_an_encoder_with_random_outputs_or_in_training_is_refused(micro: Whisper, frozen: Whisper) -> None:
    check_cacheable(frozen.model)
    frozen.model.config.dropout = 0.1
    with pytest.raises(ConfigError, match=r"model\.dropout=0\.1 makes the encoder's outputs random"):
        check_cacheable(frozen.model)
    micro.model.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"add model\.freeze=encoder"):
        check_cacheable(micro.model)


def test_a_cache_that_root_has_filled_is_read_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = EncoderCache(tmp_path / "a.states", {"a": 4}, 8, torch.float32)
    torch.ones(16).numpy().tofile(cache.path)
    monkeypatch.setattr("kikitori.data.encoder_cache.os.access", lambda path, mode: False)
    original, shared = torch.from_file, []

    def from_file(path: str, **how: Any) -> torch.Tensor:
        shared.append(how["shared"])
        return original(path, **how)

    monkeypatch.setattr(torch, "from_file", from_file)
    assert cache["a"].sum() == 16
    assert shared == [False]
