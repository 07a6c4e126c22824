"""The corpus and the base of a tuned model, found from its run."""

from pathlib import Path
from typing import Any

import pytest

from kikitori.runtime.errors import ConfigError
from kikitori.runtime.files import read_json, write_json
from kikitori.steps.origin import with_origin

DATA = {"_target_": "kikitori.Demo", "language": "ja", "roots": ["/mnt"], "cache_encoder_outputs": True}
CHOSEN_BY_THE_RUN: dict[str, Any] = {"data": {}, "against": None}


def run(folder: Path, **model: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"data": DATA, "model": {"_target_": "kikitori.load_whisper", **model}}
    write_json(folder / "results.json", {"config": config, "cwd": str(folder.parent)})
    return str(folder)


def test_corpus_and_base_are_those_of_the_run(tmp_path: Path) -> None:
    found = with_origin(CHOSEN_BY_THE_RUN, run(tmp_path / "run", name="openai/whisper-base"))
    assert found["against"] == "openai/whisper-base"
    assert found["data"]["_target_"] == "kikitori.Demo"
    assert found["data"]["roots"] is None


def test_outputs_that_a_run_kept_of_its_frozen_encoder_are_not_those_of_two_models(tmp_path: Path) -> None:
    found = with_origin(CHOSEN_BY_THE_RUN, run(tmp_path / "run", name="openai/whisper-base", freeze="encoder"))
    assert found["data"]["cache_encoder_outputs"] is False


def test_a_base_of_another_revision_than_the_main_branch_is_that_revision(tmp_path: Path) -> None:
    place = run(tmp_path / "run", name="openai/whisper-base", revision="e37978b")
    assert with_origin(CHOSEN_BY_THE_RUN, place)["against"] == "hub:openai/whisper-base@e37978b"
    assert with_origin({**CHOSEN_BY_THE_RUN, "against": "other"}, place)["against"] == "other"


def test_a_base_that_was_given_by_an_alias_is_the_version_that_the_run_found(tmp_path: Path) -> None:
    place = run(tmp_path / "run", name="wandb:team/asr/model:best")
    results = read_json(Path(place) / "results.json")
    write_json(Path(place) / "results.json", results | {"references": {"wandb:team/asr/model:best": "wandb:t/a/m:v3"}})
    assert with_origin(CHOSEN_BY_THE_RUN, place)["against"] == "wandb:t/a/m:v3"


def test_the_base_is_found_in_the_folder_where_the_run_was_started(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    assert with_origin(CHOSEN_BY_THE_RUN, run(tmp_path / "run", name="base"))["against"] == str(tmp_path / "base")


@pytest.mark.parametrize("place", ["/nonesuch/run", "./nonesuch", r"C:\runs\nonesuch"])
def test_a_model_that_does_not_exist_is_named_before_its_corpus_is_missed(place: str) -> None:
    with pytest.raises(ConfigError, match="does not exist; give the folder of a run or of a model"):
        with_origin(CHOSEN_BY_THE_RUN, place)
