"""What is exported is read by its engine as it is read here."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import WhisperTokenizer

from kikitori.corpora.types import Speech
from kikitori.exports.formats import find_format
from kikitori.exports.parity import read_own
from kikitori.model.whisper import Whisper


def exported_to(name: str, precision: str, model_folder: Path, tmp_path: Path) -> Path:
    find_format(name).write(model_folder, tmp_path, precision)
    return tmp_path


@pytest.mark.parametrize("precision", ["float32", pytest.param("int8", marks=pytest.mark.long)])
def test_ctranslate2_reads_the_texts(
    model_folder: Path, exported: Whisper, noises: Sequence[Speech], tmp_path: Path, precision: str
) -> None:
    pytest.importorskip("ctranslate2")
    target = exported_to("ctranslate2", precision, model_folder, tmp_path)
    read = find_format("ctranslate2").load(target, "ja", "transcribe")
    ours = [own.text for own in read_own(exported, noises, lambda: None)]
    theirs = [read(clip.samples) for clip in noises]
    assert len(set(ours)) > 1
    assert theirs == ours or precision == "int8"
    # What faster-whisper looks for.
    assert {"model.bin", "tokenizer.json", "preprocessor_config.json"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.long
def test_transformers_reads_the_texts_in_each_precision(
    model_folder: Path, exported: Whisper, noises: Sequence[Speech], tmp_path: Path
) -> None:
    ours = [own.text for own in read_own(exported, noises, lambda: None)]
    sizes = []
    for precision in ("float32", "float16"):
        target = tmp_path / precision
        target.mkdir()
        exported_to("transformers", precision, model_folder, target)
        sizes.append((target / "model.safetensors").stat().st_size)
        read = find_format("transformers").load(target, "ja", "transcribe")
        assert [read(clip.samples) for clip in noises] == ours
    assert sizes[1] < 0.51 * sizes[0]


def test_openai_whisper_reads_the_tokens(
    model_folder: Path, exported: Whisper, noises: Sequence[Speech], tmp_path: Path
) -> None:
    whisper = pytest.importorskip("whisper")
    target = exported_to("openai", "float32", model_folder, tmp_path)
    model = whisper.load_model(str(target / "model.pt"), device="cpu")
    own = read_own(exported, noises[:1], lambda: None)[0]
    features = exported.processor.log_mel(noises[0].samples, full_window=True)[None]
    prefix = torch.tensor([[*exported.processor.prefix, *own.tokens]])
    with torch.no_grad():
        theirs = model(features, prefix)
        ours = exported.model(input_features=features, decoder_input_ids=prefix).logits
    assert torch.allclose(theirs, ours, atol=1e-3)
    assert find_format("openai").load(target, "ja", "transcribe")(noises[0].samples)


def test_the_readme_of_openai_whispers_export_sets_the_alignment_heads(model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("whisper")
    text = (exported_to("openai", "float16", model_folder, tmp_path) / "README.md").read_text()
    code = text.split("```python\n")[2].split("```")[0]
    setup = f"import torch, whisper\nmodel = whisper.load_model({str(tmp_path / 'model.pt')!r}, device='cpu')\n"
    found: dict[str, object] = {}
    exec(setup + code, found)
    heads = found["model"].alignment_heads.to_dense()  # type: ignore[attr-defined]
    assert heads.nonzero().tolist() == [[1, 0], [1, 1]]


def test_an_export_without_tokenizer_config_has_the_same_special_tokens(model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    target = exported_to("ctranslate2", "float16", model_folder, tmp_path)
    ours, theirs = (WhisperTokenizer.from_pretrained(place) for place in (model_folder, target))
    assert ours.get_vocab() == theirs.get_vocab()
