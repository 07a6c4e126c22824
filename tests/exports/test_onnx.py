"""The graphs for onnxruntime: as optimum names them, equal to the model, for batches and lengths of any size."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kikitori.corpora.types import Speech
from kikitori.exports.formats import find_format
from kikitori.exports.onnx import ENCODER, FIRST, NEXT, _run, write
from kikitori.exports.parity import beyond_ties, compare, read_own
from kikitori.exports.read_back import Reading
from kikitori.model.whisper import Whisper, encode

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def target(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    write(model_folder, folder, "float32")
    return folder


def graph(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_the_files_and_their_inputs_have_optimums_names(target: Path) -> None:
    assert {path.name for path in target.iterdir()} >= {ENCODER, FIRST, NEXT, "config.json", "tokenizer.json"}
    assert not list(target.glob("*.safetensors"))
    kinds = ("decoder.key", "decoder.value", "encoder.key", "encoder.value")
    past = [f"past_key_values.{layer}.{kind}" for layer in range(2) for kind in kinds]
    inputs = [[value.name for value in graph(target / name).get_inputs()] for name in (ENCODER, FIRST, NEXT)]
    assert inputs == [["input_features"], ["input_ids", "encoder_hidden_states"], ["input_ids", *past]]
    outputs = [value.name for value in graph(target / NEXT).get_outputs()]
    assert outputs == [
        "logits",
        *(f"present.{layer}.decoder.{kind}" for layer in range(2) for kind in ("key", "value")),
    ]


@pytest.mark.parametrize(("batch", "length"), [(1, 4), (3, 1), (2, 7)])
def test_the_graphs_equal_the_model_with_and_without_the_cache(
    target: Path, exported: Whisper, noises: Sequence[Speech], batch: int, length: int
) -> None:
    mels = torch.stack([exported.processor.log_mel(clip.samples, full_window=True) for clip in noises[:batch]])
    ids = torch.randint(0, exported.model.config.vocab_size, (batch, length + 2))
    with torch.no_grad():
        states = encode(exported.model, mels)
        ours = exported.model(encoder_outputs=(states,), decoder_input_ids=ids).logits.numpy()
    found = _run(graph(target / ENCODER), {"input_features": mels.numpy()})["last_hidden_state"]
    assert np.allclose(found, states.numpy(), atol=1e-3)
    outputs = _run(graph(target / FIRST), {"input_ids": ids[:, :length].numpy(), "encoder_hidden_states": found})
    assert np.allclose(outputs.pop("logits"), ours[:, :length], atol=5e-3)
    cache: dict[str, Any] = {}
    for position in range(length, length + 2):
        cache |= {name.replace("present", "past_key_values"): value for name, value in outputs.items()}
        outputs = _run(graph(target / NEXT), {"input_ids": ids[:, position : position + 1].numpy(), **cache})
        assert np.allclose(outputs.pop("logits")[:, 0], ours[:, position], atol=5e-3)


def test_onnxruntime_reads_the_texts(target: Path, exported: Whisper, noises: Sequence[Speech]) -> None:
    read = find_format("onnx").load(target, "ja", "transcribe")
    theirs = [Reading(read(clip.samples), 0.0) for clip in noises]
    figures = compare(exported, noises, read_own(exported, noises, lambda: None), theirs, "float32")
    assert figures["equal"] >= 2
    assert not beyond_ties(figures)


def test_int8_has_a_fraction_of_the_size_and_is_read(
    model_folder: Path, target: Path, noises: Sequence[Speech], tmp_path: Path
) -> None:
    write(model_folder, tmp_path, "int8")
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in target.iterdir()}
    for name in (FIRST, NEXT):
        assert (tmp_path / name).stat().st_size < 0.6 * (target / name).stat().st_size
    assert find_format("onnx").load(tmp_path, "ja", "transcribe")(noises[0].samples)
