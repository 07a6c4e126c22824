"""A folder in CTranslate2's format is read like the model it was made of, and what is wrong with one is named."""

import json
from pathlib import Path

import pytest
import torch

from kikitori.audio.waveform import decode
from kikitori.engines import ctranslate2 as module
from kikitori.engines.ctranslate2 import CTranslate2Engine, is_export
from kikitori.engines.loading import load_engine
from kikitori.inference.confidence import tokens_of
from kikitori.inference.generate import TorchEngine
from kikitori.inference.transcribe import transcribe_pieces
from kikitori.model.whisper import Whisper
from kikitori.runtime.errors import ModelError
from kikitori.runtime.files import write_json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.bin").write_bytes(b"x")
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_a_folder_with_weights_of_both_formats_is_no_export(folder: Path) -> None:
    assert is_export(folder)
    (folder / "model.safetensors").touch()
    assert not is_export(folder)
    assert not is_export(folder / "gone")


def test_without_the_package_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'kikitori\[ctranslate2\]'"):
        load_engine(str(folder), "ja", None)
    with pytest.raises(ModelError, match="is for an adapter"):
        load_engine(str(folder), "ja", None, base="x")


def test_damaged_weights_are_named(folder: Path) -> None:
    pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed")
    (folder / "vocabulary.json").write_text("[]")
    with pytest.raises(ModelError, match=r"cannot be read by CTranslate2: .*; export it again"):
        load_engine(str(folder), "ja", None)


@pytest.mark.parametrize("key", ["suppress_ids", "suppress_ids_begin", "lang_ids"])
def test_tokens_beyond_the_vocabulary_are_refused(folder: Path, key: str) -> None:
    pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed")
    (folder / "vocabulary.json").write_text('["a", "b"]')
    (folder / "config.json").write_text(json.dumps({key: [1, 2]}))
    with pytest.raises(ModelError, match=f"config.json has {key} with 2, but a vocabulary of 2"):
        load_engine(str(folder), "ja", None)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json cannot be read: .*; export it again"):
        load_engine(str(folder), "ja", None)


def test_a_tokenizer_of_another_model_is_refused(micro: Whisper, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no tokenizer\.json; copy that of the model"):
        module._tokenizer(tmp_path)
    micro.save(tmp_path)
    words = [""] * 300
    for word, number in micro.processor.tokenizer.get_vocab().items():
        words += [""] * (number + 1 - len(words))
        words[number] = word
    (tmp_path / "vocabulary.json").write_text(json.dumps(words))
    assert module._tokenizer(tmp_path).get_vocab() == micro.processor.tokenizer.get_vocab()
    (tmp_path / "vocabulary.json").write_text(json.dumps(words[1:]))
    with pytest.raises(ModelError, match="has files of different Whispers"):
        module._tokenizer(tmp_path)
    (tmp_path / "vocabulary.json").write_text("[" * 10**5)
    with pytest.raises(ModelError, match="its vocabulary cannot be read"):
        module._tokenizer(tmp_path)


def test_what_an_export_says_of_its_training_is_checked(tmp_path: Path) -> None:
    assert module._known(tmp_path) == {}
    facts = {"language": "de", "kikitori_languages": ["de", "ja"]}
    facts["kikitori_trained_on"] = {"longest_s": 9.0, "p95_s": 6.0, "density": 0.3}
    write_json(tmp_path / "kikitori.json", facts)
    known = module._known(tmp_path)
    assert (known["language"], known["task"], known["languages"]) == ("de", None, ["de", "ja"])
    assert known["trained_on"]["p95_s"] == 6.0
    for wrong in ({"language": 5}, {"kikitori_languages": ["xx"]}, {"kikitori_trained_on": {"p95_s": "6"}}):
        write_json(tmp_path / "kikitori.json", facts | wrong)
        with pytest.raises(ModelError, match=r"kikitori\.json"):
            module._known(tmp_path)


@pytest.fixture(scope="session")
def export(whisper_base: Whisper, tmp_path_factory: pytest.TempPathFactory) -> Path:
    converters = pytest.importorskip("ctranslate2.converters", reason="ctranslate2 is not installed")
    run = tmp_path_factory.mktemp("run")
    whisper_base.save(run / "model")
    converter = converters.TransformersConverter(str(run / "model"), copy_files=["tokenizer.json"])
    return Path(converter.convert(str(run / "exports" / "ctranslate2"), quantization="float32"))


@pytest.mark.long
def test_an_export_reads_real_speech_with_the_same_tokens_and_probabilities(
    export: Path, whisper_base: Whisper, speech: Path
) -> None:
    engine, torch_engine = load_engine(str(export), None, None), TorchEngine(whisper_base)
    assert isinstance(engine, CTranslate2Engine)
    assert (engine.processor.language, engine.processor.task) == ("ja", "transcribe")
    clips = [decode(path) for path in sorted((speech / "clips").glob("*.mp3"))[:5]]
    with torch_engine.ready():
        expected = torch_engine.read(clips, None)
        detected = torch_engine.detect(clips[:2])
    found = engine.read(clips, None)
    assert [row.text for row in found] == [row.text for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert row.tokens == other.tokens
        assert row.logprobs == pytest.approx(other.logprobs, abs=1e-2)
        assert row.mean_logprob == pytest.approx(other.mean_logprob, abs=1e-2)
        assert row.no_speech == pytest.approx(other.no_speech, abs=1e-3)
        assert "".join(token.text for token in tokens_of(engine.processor, row.tokens, row.logprobs)) == row.text
    for row, other in zip(engine.detect(clips[:2]), detected, strict=True):
        assert row["ja"] == pytest.approx(other["ja"], abs=1e-2)
    joined = torch.cat(clips[:3])
    pieces = transcribe_pieces(engine, joined, segments="timestamps")
    others = transcribe_pieces(torch_engine, joined, segments="timestamps")
    assert [(p.text, p.start_s, p.end_s) for p in pieces] == [(p.text, p.start_s, p.end_s) for p in others]
