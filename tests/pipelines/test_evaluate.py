"""`kikitori evaluate` finds the model of a checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kikitori.model.loading import build_whisper
from kikitori.model.whisper import Whisper
from kikitori.runtime.errors import ConfigError, ModelError
from kikitori.steps.builders import build_model, load_checkpoint


def load(checkpoint: Path, language: str | None = None, task: str | None = None, corpus: str = "ja") -> Whisper:
    model = {"language": language, "task": task}
    return load_checkpoint({"checkpoint": str(checkpoint), "model": model, "data": {"language": corpus}})


@pytest.fixture(params=["folder", "ckpt"])
def german_translator(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint of a model that was trained to translate German."""
    whisper = build_whisper(32, 1, 1, 2, window_s=1, language="de", task="translate", max_label_tokens=64)
    if request.param == "folder":
        whisper.save(tmp_path / "run" / "model")
        return tmp_path / "run"
    state = {f"model.{name}": value for name, value in whisper.model.state_dict().items()}
    torch.save({"hyper_parameters": {"recipe": whisper.recipe}, "state_dict": state}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_language_and_task_are_those_of_the_model(german_translator: Path) -> None:
    whisper = load(german_translator, corpus="ja")
    assert (whisper.processor.language, whisper.processor.task) == ("de", "translate")
    assert whisper.processor.text_language == "en"
    assert whisper.notes == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"languages": [["ja"]]}, r"has languages=\[\['ja'\]\]; it must be a list"),
        ({"languages": 5}, "has languages=5; it must be a list"),
        ({"languages": ["xx"]}, "a code of Whisper's languages"),
        ({"trained_on": 5}, "trained_on has 5 in place of an object"),
        ({"generation": {"max_new_tokens": 5, "num_beams": 10**6}}, "generation.num_beams=1000000; it must be"),
    ],
    ids=str,
)
def test_a_fault_in_a_checkpoint_names_it(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    whisper = build_whisper(32, 1, 1, 2, window_s=1, max_label_tokens=64)
    torch.save({"hyper_parameters": {"recipe": whisper.recipe | changes}, "state_dict": {}}, tmp_path / "last.ckpt")
    with pytest.raises(ModelError, match=rf"^checkpoint={tmp_path}/last.ckpt.*{fault}"):
        load(tmp_path / "last.ckpt")


def test_other_ones_that_are_set_are_used_and_noted(german_translator: Path, caplog: pytest.LogCaptureFixture) -> None:
    whisper = load(german_translator, "Japanese", "transcribe")
    assert (whisper.processor.language, whisper.processor.task) == ("ja", "transcribe")
    assert [note.partition("; ")[0] for note in whisper.notes] == [
        "model.language=ja is used, as set",
        "model.task=transcribe is used, as set",
    ]
    assert [record.getMessage() for record in caplog.records] == whisper.notes
    # The same ones in another form are no others.
    assert load(german_translator, "de-DE", "translate").notes == []


def test_a_model_without_a_language_takes_that_of_the_corpus_and_logs_it(
    micro: Whisper, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a trainer of transformers saves it."""
    micro.save(tmp_path)
    file = tmp_path / "generation_config.json"
    kept = {k: v for k, v in json.loads(file.read_text()).items() if k not in ("language", "task")}
    file.write_text(json.dumps(kept))
    whisper = load(tmp_path, corpus="zh-TW")
    assert (whisper.processor.language, whisper.processor.task) == ("zh", "transcribe")
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path} was saved without a language; zh-TW is used, since none is set"
    ]
    load(tmp_path, "zh", corpus="ja")
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("language", "corpus", "code"), [(None, "sv-SE", "sv"), ("de", "ja", "de"), (None, "ja", "ja")]
)
def test_a_model_that_is_built_has_the_language_of_the_corpus(language: str | None, corpus: str, code: str) -> None:
    model = {
        "_target_": "kikitori.build_whisper",
        "d_model": 8,
        "attention_heads": 1,
        "language": language,
        "task": None,
    }
    whisper = build_model({"model": model, "data": {"language": corpus}})
    assert (whisper.processor.language, whisper.processor.task) == (code, "transcribe")


def test_a_language_that_no_clip_has_is_replaced_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = {"_target_": "kikitori.build_whisper", "d_model": 8, "attention_heads": 1, "task": None}
    config = {"data": {"language": "ja"}, "model": {**model, "language": "Japanese"}}
    assert build_model(config, ["ko", "ja"]).processor.language == "ja"
    assert not caplog.records
    assert build_model(config, ["ko", "en"]).processor.language == "ko"
    assert [record.getMessage() for record in caplog.records] == [
        "model.language=Japanese, but the corpus has no clips in it: ko, the first of its languages, is that of the "
        "model"
    ]


def test_the_model_of_a_run_folder_is_loaded(micro: Whisper, tmp_path: Path) -> None:
    micro.save(tmp_path / "model")
    loaded = load(tmp_path).model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in micro.model.state_dict().items())


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ModelError, match=f"checkpoint={tmp_path} holds no model: "):
        load(tmp_path)


def test_a_checkpoint_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not exist; give a run folder, a model folder, or a \.ckpt file"):
        load(tmp_path / "nonesuch")
