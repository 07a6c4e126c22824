"""The folder for mlx-whisper."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kikitori.corpora.types import Speech
from kikitori.exports.formats import find_format
from kikitori.exports.mlx import WEIGHTS, write
from kikitori.exports.parity import read_own
from kikitori.model.whisper import Whisper


def test_the_folder_has_the_sizes_and_every_weight_but_the_encoders_positions(
    model_folder: Path, exported: Whisper, tmp_path: Path
) -> None:
    write(model_folder, tmp_path, "float16")
    model, weights = exported.model, load_file(tmp_path / WEIGHTS)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["n_vocab"], config["n_mels"]) == (model.config.vocab_size, model.config.num_mel_bins)
    assert len(weights) == len(list(model.named_parameters())) - 1
    assert "encoder.positional_embedding" not in weights
    conv = model.model.encoder.conv1.weight.detach()
    assert torch.equal(weights["encoder.conv1.weight"], conv.transpose(1, 2).half())
    assert torch.equal(weights["decoder.blocks.0.mlp1.weight"], model.model.decoder.layers[0].fc1.weight.half())
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}


@pytest.mark.long
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_mlx_whisper_has_the_logits_and_the_special_tokens(
    model_folder: Path, exported: Whisper, noises: Sequence[Speech], tmp_path: Path, precision: str
) -> None:
    mx = pytest.importorskip("mlx.core", reason="needs the extra mlx")
    pytest.importorskip("mlx_whisper", reason="needs the extra mlx")
    from mlx_whisper.load_models import load_model
    from mlx_whisper.tokenizer import get_tokenizer

    write(model_folder, tmp_path, precision)
    model = load_model(str(tmp_path), getattr(mx, precision))
    tokenizer = get_tokenizer(True, num_languages=model.num_languages, language="ja", task="transcribe")
    assert list(tokenizer.sot_sequence_including_notimestamps) == exported.processor.prefix
    own = read_own(exported, noises[:1], lambda: None)[0]
    ids = [*exported.processor.prefix, *own.tokens]
    features = exported.processor.log_mel(noises[0].samples, full_window=True)
    mel = mx.array(features.T[None].numpy()).astype(getattr(mx, precision))
    theirs = torch.tensor(model(mel, mx.array([ids])).astype(mx.float32).tolist())
    with torch.no_grad():
        ours = exported.model(input_features=features[None], decoder_input_ids=torch.tensor([ids])).logits
    assert torch.allclose(theirs, ours, atol=0.005 if precision == "float32" else 0.2)
    assert find_format("mlx").load(tmp_path, "ja", "transcribe")(noises[0].samples)
