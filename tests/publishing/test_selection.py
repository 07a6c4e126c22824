"""What of a model's folder goes to the Hub, and what never does."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pushed_runs import results, write_pushed_run

from kikitori.publishing.card import card
from kikitori.publishing.run import folder_to_push
from kikitori.publishing.selection import check_text, select
from kikitori.runtime.errors import ConfigError, KikitoriError
from kikitori.runtime.files import write_json


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_pushed_run(tmp_path / "run") / "model"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_every_file_that_is_saved_is_chosen_and_all_else_left_out(model: Path) -> None:
    saved = {path.name for path in model.iterdir()} - {"README.md"}
    for name in ("optimizer.pt", "pytorch_model.bin", "clip.mp3", "speakers.csv", ".env", "model.safetensors.bak"):
        (model / name).write_text("hf_secret")
    (model / "logs").mkdir()
    chosen = select(model)
    assert set(chosen.files) == saved
    assert chosen.left_out == [
        ".env",
        "clip.mp3",
        "logs/",
        "model.safetensors.bak",
        "optimizer.pt",
        "pytorch_model.bin",
        "speakers.csv",
    ]
    assert chosen.notes == []


def test_keys_that_say_where_a_file_was_loaded_are_left_out(model: Path) -> None:
    edit(model / "tokenizer_config.json", is_local=True, local_files_only=True, name_or_path="/home/somebody/base")
    edit(model / "config.json", _name_or_path="/home/somebody/base")
    chosen = select(model)
    content = chosen.files["tokenizer_config.json"]
    assert isinstance(content, bytes)
    assert not {"is_local", "local_files_only", "name_or_path"} & json.loads(content).keys()
    assert b"somebody" not in b"".join(part for part in chosen.files.values() if isinstance(part, bytes))
    assert chosen.notes == [
        "config.json goes without _name_or_path",
        "tokenizer_config.json goes without is_local, local_files_only, name_or_path",
    ]
    # The user's own file is as it was.
    assert json.loads((model / "tokenizer_config.json").read_text())["is_local"] is True


@pytest.mark.parametrize("text", ["/home/somebody/base", "~/models/a", "C:\\models", "\\\\server\\a", "file:///a"])
def test_another_path_of_the_machine_is_refused_with_its_place(model: Path, text: str) -> None:
    edit(model / "generation_config.json", extra={"from": [text]})
    with pytest.raises(ConfigError, match=r"generation_config\.json: extra\.from\.0 is a path of this machine"):
        select(model)


def test_a_secret_of_the_environment_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "canary-0123456789")
    edit(model / "config.json", note="canary-0123456789")
    with pytest.raises(ConfigError, match=r"config\.json holds a secret") as caught:
        select(model)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"/home/alice/x": 1}, {"note": "of Alice, see /mnt/patients/alice.csv"}])
def test_a_path_is_found_in_names_and_within_texts(model: Path, changes: dict[str, Any]) -> None:
    edit(model / "config.json", extra=changes)
    with pytest.raises(ConfigError, match=r"config\.json names /\w+/\w+/[\w.]+, a path of this machine"):
        select(model)


def test_a_link_is_refused(model: Path) -> None:
    os.replace(model / "vocab.json", model.parent / "elsewhere")
    (model / "vocab.json").symlink_to(model.parent / "elsewhere")
    with pytest.raises(ConfigError, match=r"vocab\.json is no regular file"):
        select(model)


def test_a_damaged_configuration_is_named(model: Path) -> None:
    (model / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json cannot be read: .*; mend it"):
        select(model)


@pytest.mark.parametrize("place", ["/opt/asr/clip.mp3", "~/secret/a", "/home/alice/a", "/Users/a", "/mnt/a"])
def test_a_card_that_names_a_folder_of_the_machine_is_refused(
    model: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/users/me")
    text = f"Made from {os.path.expanduser(place)}."
    with pytest.raises(ConfigError, match="a path of this machine; delete it"):
        check_text(text, model / "README.md", "/opt/asr")
    check_text("See /usr/share or https://home/me and /users/me-too, /home.", model / "README.md", "/opt/asr")


def refusal(folder: Path, adapter: bool = False) -> str:
    with pytest.raises(KikitoriError) as caught:
        folder_to_push(folder, adapter)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"status": "failed"}, "is failed, and only a completed run has a model with its scores; resume it with"),
        ({"status": "running"}, "is running, and only a completed run"),
        ({"command": "evaluate"}, "is a run of kikitori evaluate and made no model; give a training"),
        ({"config": {"keep": "scores"}}, "kept its scores alone (keep=scores)"),
    ],
)
def test_a_run_without_a_model_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    write_json(tmp_path / "results.json", results(**changes))
    assert reason in refusal(tmp_path)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nonesuch").endswith("is no folder; give the folder of a completed run")
    export = write_pushed_run(tmp_path / "exported") / "exports" / "ctranslate2-float16"
    export.mkdir(parents=True)
    assert refusal(export).endswith(f"which are all that is pushed; upload it with hf upload NAME {export}")
    (write_pushed_run(tmp_path / "run") / "model").rename(tmp_path / "model")
    assert "is no run: it has no results.json" in refusal(tmp_path)
    write_json(tmp_path / "results.json", results())
    assert folder_to_push(tmp_path)[0] == folder_to_push(tmp_path / "model")[0] == tmp_path / "model"
    assert "has no folder adapter/, since it trained all weights" in refusal(tmp_path, adapter=True)
    (tmp_path / "model" / "config.json").unlink()
    assert "holds no model" in refusal(tmp_path)


def test_an_adapter_goes_without_the_folder_of_its_base(tmp_path: Path) -> None:
    run = write_pushed_run(tmp_path / "run")
    (run / "adapter").mkdir()
    config = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": "/home/somebody/whisper-base"}
    write_json(run / "adapter" / "adapter_config.json", config)
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    folder, record = folder_to_push(run, adapter=True)
    chosen = select(folder)
    assert chosen.notes == ["adapter_config.json goes without base_model_name_or_path"]
    text, metadata = card(folder, record, "team/a", None, None)
    assert (metadata["library_name"], metadata["base_model_relation"]) == ("peft", "adapter")
    assert 'kikitori.load_whisper("hub:team/a")' in text
