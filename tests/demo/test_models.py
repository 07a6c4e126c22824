import json
from pathlib import Path

import pytest

from kikitori.demo import models
from kikitori.demo.examples import find_examples
from kikitori.demo.models import load_models
from kikitori.model.whisper import Whisper
from kikitori.runtime.errors import ModelError


@pytest.fixture
def run(micro: Whisper, tmp_path: Path) -> Path:
    """A run that began with the model in the folder `base`."""
    micro.save(tmp_path / "base")
    return write_run(micro, tmp_path / "tuned", {"name": "base"})


def write_run(whisper: Whisper, folder: Path, model: dict[str, str]) -> Path:
    whisper.save(folder / "model")
    record = {"status": "completed", "command": "train", "cwd": str(folder.parent), "scores": {}}
    (folder / "results.json").write_text(json.dumps({**record, "config": {"model": model}}))
    return folder


def shown(places: list[str], base: str | None = None) -> tuple[list[tuple[str, bool]], list[str]]:
    models, notes = load_models(places, base)
    return [(model.title, model.is_base) for model in models], notes


def test_the_base_of_a_run_comes_first(run: Path) -> None:
    assert shown([str(run)]) == ([("base", True), ("tuned", False)], [])
    assert shown([str(run / "model")]) == ([("base", True), ("tuned", False)], [])


def test_runs_of_one_base_show_it_once_and_equal_names_in_full(micro: Whisper, run: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    other = write_run(micro, tmp_path / "more" / "tuned", {"name": str(tmp_path / "base")})
    titles, notes = shown([str(run), str(other), str(run)])
    assert titles == [("base", True), (str(run), False), (str(other), False)]
    assert not notes


def test_another_base_can_be_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "base").rename(tmp_path / "moved")
    assert shown([str(run)], str(tmp_path / "moved")) == ([("moved", True), ("tuned", False)], [])
    titles, (note,) = shown([str(run)])
    assert titles == [("tuned", False)]
    assert note.startswith("the base is left out: base does not exist; ")
    assert "--base" in note
    with pytest.raises(ModelError, match=r"--base .*nowhere does not exist"):
        load_models([str(run)], str(tmp_path / "nowhere"))


def test_a_run_that_began_with_random_weights_is_shown_alone(micro: Whisper, tmp_path: Path) -> None:
    run = write_run(micro, tmp_path / "micro", {})
    titles, (note,) = shown([str(run)])
    assert titles == [("micro", False)]
    assert note == f"{run} names no base, so it is shown alone; --base adds a model to compare it with"


def test_a_run_without_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ModelError) as caught:
        load_models([str(tmp_path)], None)
    assert str(caught.value) == (
        f"{tmp_path} holds no model: a run saves its model when it completes; resume this one with kikitori train "
        "resume=FOLDER"
    )
    with pytest.raises(ModelError, match=r"last\.ckpt is a checkpoint; give the folder of its run"):
        load_models(["last.ckpt"], None)


def test_without_a_run_there_are_no_examples(tmp_path: Path) -> None:
    assert find_examples([str(tmp_path)]) == ([], f"{tmp_path} is no run")


def test_the_base_is_used_for_an_adapter_that_is_elsewhere(
    micro: Whisper, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a reference, only its pinned name tells whether it is an adapter."""
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    loaded: list[tuple[str, str | None]] = []

    def load(name: str, language: str | None = None, task: str | None = None, base: str | None = None) -> Whisper:
        loaded.append((name, base))
        return micro

    monkeypatch.setattr(models, "pinned", lambda name, _: (str(tmp_path / "adapter") if ":" in name else name, None))
    monkeypatch.setattr(models, "load_to_read", load)
    load_models(["hub:me/adapter", str(run)], "b")
    assert loaded == [("hub:me/adapter", "b"), (str(run), None), ("b", None)]
