"""The card of a model on the Hub."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from pushed_runs import RATES, results, write_pushed_run

from kikitori.publishing.card import card
from kikitori.runs.model_card import metadata
from kikitori.runtime.errors import ConfigError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_pushed_run(tmp_path / "run") / "model"


def test_the_hubs_own_reader_finds_every_score(model: Path) -> None:
    text, _ = card(model, results(), "team/a", "apache-2.0", "CC0-1.0")
    read = ModelCard(text).data
    assert (read.language, read.license, read.base_model) == ("ja", "apache-2.0", "openai/whisper-base")
    assert read.library_name == "transformers"
    assert read.pipeline_tag == "automatic-speech-recognition"
    found = {(one.metric_type, one.metric_args["window"]): one for one in read.eval_results}
    assert set(found) == {
        (rate, window) for rate in ("cer", "wer") for window in ("2 s, else the full window", "the full window")
    }
    cer = found["cer", "2 s, else the full window"]
    assert (cer.metric_value, cer.dataset_split, cer.dataset_config) == (25.0, "test", "ja")
    assert cer.dataset_name == "Common Voice, cv-corpus-27"
    assert cer.metric_args == {
        "interval_95": [20.0, 30.0],
        "clips": 5,
        "window": "2 s, else the full window",
        "normaliser": "nfkc-2",
        "segmenter": "sudachi C",
        "before_training": 25.0,
    }
    assert "before_training" not in found["cer", "the full window"].metric_args
    assert "**Licences.** Of the model: apache-2.0. Of the speech that it was trained on: CC0-1.0." in text


def test_a_licence_that_was_not_stated_is_not_made_up(model: Path) -> None:
    text, metadata = card(model, results(), "team/a", None, None)
    assert "license" not in metadata
    assert "Of the model: not stated by who uploaded it. Of the speech" in text


def test_what_was_written_by_hand_is_kept(model: Path) -> None:
    (model / "README.md").write_text("---\nlicense: mit\nbase_model: me/other\n---\n\n# My model\n", encoding="utf-8")
    text, metadata = card(model, results(), "team/a", None, None)
    assert (metadata["license"], metadata["base_model"], metadata["language"]) == ("mit", "me/other", "ja")
    assert text.split("---\n")[2].startswith("\n# My model\n")
    assert "Of the model: mit." in text
    assert "model-index" in metadata


def test_the_licence_of_the_command_line_replaces_that_of_the_card(model: Path) -> None:
    (model / "README.md").write_text("---\nlicense: mit\n---\n\n# My model\n", encoding="utf-8")
    text, metadata = card(model, results(), "team/a", "apache-2.0", None)
    assert ModelCard(text).data.license == metadata["license"] == "apache-2.0"
    assert "Of the model: apache-2.0." in text


@pytest.mark.parametrize("end", ["---\r\n\r\n# My model\r\n", "---"])
def test_a_card_that_an_editor_of_windows_saved_is_read(model: Path, end: str) -> None:
    (model / "README.md").write_bytes(f"\ufeff---\r\nlicense: mit\r\n{end}".encode())
    text, metadata = card(model, results(), "team/a", None, None)
    assert metadata["license"] == "mit"
    assert text.count("\n---\n") == 1
    assert "\r" not in text


def test_a_base_that_was_a_folder_is_no_name_on_the_hub(model: Path, tmp_path: Path) -> None:
    (tmp_path / "outputs" / "first").mkdir(parents=True)
    (model / "README.md").unlink()
    # Pushed from another folder than the one in which it was trained.
    _, found = card(model, results("outputs/first", cwd=str(tmp_path)), "team/a", None, None)
    assert "base_model" not in found


def test_a_card_is_made_where_there_is_none(model: Path) -> None:
    expected, _ = card(model, results(), "team/a", None, None)
    (model / "README.md").unlink()
    assert card(model, results(), "team/a", None, None)[0] == expected
    assert 'kikitori.load_whisper("hub:team/a")' in expected


BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{','.join(9 * [f'*a{i - 1}'])}]\n" for i in range(1, 9))


def test_a_card_that_names_a_path_of_the_machine_is_refused(model: Path) -> None:
    (model / "README.md").write_text("# Trained on /home/somebody/asr/clips\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"README\.md names /home/somebody/asr/clips, a path of this machine"):
        card(model, results(), "team/a", None, None)


@pytest.mark.parametrize(
    "head", [f"---\n{BOMB}---\n", "---\n{\n---\n", "---\n- a\n---\n", "---\na: &a [x]\nb: [*b]\n---\n"]
)
def test_a_damaged_head_is_named(model: Path, head: str) -> None:
    (model / "README.md").write_text(head, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"README\.md cannot be read: .*; mend its first lines"):
        card(model, results(), "team/a", None, None)


@pytest.mark.parametrize("part", ["data", "model"])
def test_a_record_of_another_program_is_named(model: Path, part: str) -> None:
    with pytest.raises(ConfigError, match=r"results\.json lacks what the card needs"):
        card(model, {**results(), part: {"test": None}}, "team/a", None, None)


@pytest.mark.parametrize(
    ("data", "dataset", "name"),
    [
        ({"_target_": "kikitori.Hub", "name": "google/fleurs"}, "google/fleurs", "hub, google/fleurs ja_jp"),
        ({"_target_": "kikitori.Hub", "name": "/home/me/my speech"}, None, "hub, my speech"),
        ({"_target_": "kikitori.Manifest"}, None, "manifest, a.csv"),
    ],
)
def test_a_dataset_is_named_if_the_hub_has_it(data: dict[str, Any], dataset: str | None, name: str) -> None:
    record = results()
    record["config"]["data"] |= data
    record["data"]["corpus"] = name if dataset or "name" not in data else "hub, /home/me/my speech"
    found = metadata(record)
    assert found.get("datasets") == ([dataset] if dataset else None)
    (row,) = found["model-index"][0]["results"]
    assert row["dataset"]["name"] == name
    assert row["dataset"]["type"] == (dataset or name.replace(", ", "_").replace(" ", "_").replace(".", "_"))


def test_scores_of_several_languages_are_rows_of_their_own_and_those_of_training_clips_are_none() -> None:
    several = results()
    several["data"]["languages"] = ["ja", "no"]
    of_each = {"ja": RATES, "no": RATES}
    several["scores"] = {"after": {"train": RATES, "test": {**RATES, "languages": of_each}}}
    found = yaml.safe_load(yaml.safe_dump(metadata(several)))
    assert found["language"] == ["ja", "no"]
    rows = found["model-index"][0]["results"]
    assert {(row["dataset"]["split"], row["dataset"]["config"]) for row in rows} == {("test", "ja"), ("test", "no")}
