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

FRAMES = {"a": 60, "b": 100, "c": 60}
DIGESTS = ["1", "2", "3"]


def examples(whisper: Whisper) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    said = {"tokens": whisper.processor.encode("犬"), "text": "犬", "seconds": 0.5}
    features = {name: torch.randn(80, frames, generator=generator) for name, frames in FRAMES.items()}
    return [{**said, "clip": name, "input_features": heard} for name, heard in features.items()]


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


def test_known_states_are_what_the_encoder_says(frozen: Whisper, tmp_path: Path) -> None:
    known = build(frozen, tmp_path)
    frozen.model.eval()
    for row in examples(frozen):
        expected = encode(frozen.model, row["input_features"][None])[0]
        assert known[row["clip"]].shape == (FRAMES[row["clip"]] // 2, 32)
        torch.testing.assert_close(known[row["clip"]], expected)


def test_states_are_kept_in_the_precision_that_the_decoder_rounds_them_to(frozen: Whisper, tmp_path: Path) -> None:
    assert build(frozen, tmp_path, "bf16-mixed")["a"].dtype == torch.bfloat16
    assert build(frozen, tmp_path)["a"].dtype == torch.float32
    assert len(list(tmp_path.glob("*.states"))) == 2


def test_states_are_computed_once_and_anew_where_anything_differs(frozen: Whisper, tmp_path: Path) -> None:
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


def test_an_encoder_that_changes_what_it_says_is_refused(micro: Whisper, frozen: Whisper) -> None:
    check_cacheable(frozen.model)
    frozen.model.config.dropout = 0.1
    with pytest.raises(ConfigError, match=r"model\.dropout=0\.1 makes the encoder's outputs random"):
        check_cacheable(frozen.model)
    micro.model.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"add model\.freeze=encoder"):
        check_cacheable(micro.model)
