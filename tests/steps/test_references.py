"""References in a configuration: what they stood for when the run began is recorded and used again."""

import logging
from pathlib import Path
from typing import Any

import pytest

from kikitori.references.names import HubModel
from kikitori.runs.reader import read_results
from kikitori.runtime.errors import ModelError
from kikitori.runtime.files import write_json
from kikitori.steps import session
from kikitori.steps.builders import load_checkpoint, load_model, model_name
from kikitori.steps.session import pin_references

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The references that were looked up; each is what it is called with a version or a commit."""
    names: list[str] = []

    def pin(name: str) -> str:
        names.append(name)
        if "nonesuch" in name:
            raise ModelError(f"model.name={name}: there is none")
        return f"{name.rpartition(':')[0]}:v3" if name.startswith("wandb:") else f"{name.partition('@')[0]}@{COMMIT}"

    monkeypatch.setattr(session, "pin", pin)
    return names


def config(**changes: Any) -> dict[str, Any]:
    return {"model": {"name": "openai/whisper-base", "revision": None, "base": None}, **changes}


def test_each_reference_becomes_what_it_is_now_and_is_recorded(asked: list[str], caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    results: dict[str, Any] = {}
    given = config(checkpoint="wandb:a/b/c:best", against="hub:d/e", runs=["wandb:a/b/c:best", "outputs/run"])
    found = pin_references(given, results)
    assert (found["checkpoint"], found["against"]) == ("wandb:a/b/c:v3", f"hub:d/e@{COMMIT}")
    assert found["runs"] == ["wandb:a/b/c:v3", "outputs/run"]
    assert found["model"] == given["model"]
    assert results["references"] == {"wandb:a/b/c:best": "wandb:a/b/c:v3", "hub:d/e": f"hub:d/e@{COMMIT}"}
    assert asked == ["wandb:a/b/c:best", "hub:d/e"]
    assert "checkpoint=wandb:a/b/c:best is wandb:a/b/c:v3" in caplog.text
    assert given["checkpoint"] == "wandb:a/b/c:best"


def test_a_resumed_run_uses_what_it_found_when_it_began(asked: list[str]) -> None:
    results = {"references": {"hub:d/e@main": f"hub:d/e@{COMMIT}"}}
    given = config(model={"name": "hub:d/e", "revision": "main", "base": None})
    assert pin_references(given, results)["model"] == {"name": f"hub:d/e@{COMMIT}", "revision": None, "base": None}
    assert asked == []


def test_a_configuration_without_references_is_as_it_was(asked: list[str]) -> None:
    results: dict[str, Any] = {}
    assert pin_references(config(checkpoint=None), results) == config(checkpoint=None)
    assert results == {}


def test_an_error_names_the_key(asked: list[str]) -> None:
    with pytest.raises(ModelError, match=r"^checkpoint=wandb:a/b/nonesuch:v1: there is none"):
        pin_references(config(checkpoint="wandb:a/b/nonesuch:v1"), {})


def test_the_record_is_read_and_checked(tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", {"references": {"hub:d/e": f"hub:d/e@{COMMIT}"}})
    assert read_results(tmp_path)["references"] == {"hub:d/e": f"hub:d/e@{COMMIT}"}


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"checkpoint": "wandb:team/asr/model-a1:v3"}, "model-a1:v3"),
        ({"checkpoint": f"hub:team/whisper-ja@{COMMIT}"}, "whisper-ja@0123456"),
        ({"model": {"name": "hub:team/whisper-ja@main"}}, "whisper-ja@main"),
    ],
)
def test_tables_name_a_model_by_its_last_part(settings: dict[str, Any], name: str) -> None:
    assert model_name({"model": {}, **settings}) == name


def test_a_checkpoint_may_be_a_reference_and_errors_name_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def pinned(model: HubModel) -> HubModel:
        raise ModelError(f"model.name={model}: there is none")

    monkeypatch.setattr("kikitori.references.pinning.pin_revision", pinned)
    settings = {"model": {"language": None, "task": None}, "data": {"language": "ja"}, "checkpoint": "hub:a/b"}
    for load in (load_checkpoint, lambda config: load_model(config, "checkpoint")):
        with pytest.raises(ModelError, match=r"^checkpoint=hub:a/b: there is none"):
            load(settings)
