"""What is no Whisper, or not all of one, is named in one line before any weights are loaded."""

import json
import os
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from safetensors.torch import load_file, save_file

from kikitori.model.loading import load_whisper
from kikitori.model.source import decide_on_the_hub, hub_is_reachable, model_folder
from kikitori.model.whisper import Whisper
from kikitori.runtime.errors import ModelError


@pytest.fixture
def folder(micro: Whisper, tmp_path: Path) -> Path:
    micro.save(tmp_path / "model")
    return tmp_path / "model"


def edit(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def refusal(name: Path | str) -> str:
    with pytest.raises(ModelError) as caught:
        load_whisper(str(name))
    return str(caught.value)


def test_a_model_is_found_in_the_folder_of_its_run_and_in_its_own(folder: Path) -> None:
    for given in (folder, folder.parent):
        assert model_folder(given, "checkpoint=a") == folder
        assert load_whisper(str(given)).processor.language == "ja"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([], "it is empty"),
        (["notes.txt"], "there is neither config.json nor model/config.json; give the folder of a completed run"),
        (["results.json", "train.log"], "a run saves its model when it completes; resume this one with kikitori train"),
        (["small.pt"], "small.pt is in another format"),
        (["model.bin", "vocabulary.json"], "model.bin is in another format"),
    ],
)
def test_a_folder_without_a_model_is_refused_with_what_it_holds(tmp_path: Path, files: list[str], reason: str) -> None:
    for file in files:
        (tmp_path / file).write_text("{}")
    message = refusal(tmp_path)
    assert message.startswith(f"model.name={tmp_path} holds no model: {reason}")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    "name", ["/nonesuch/model", "./nonesuch", "~/nonesuch", "a/b/c", "outputs/nonesuch", r"C:\runs\nonesuch"]
)
def test_a_folder_that_does_not_exist_is_not_looked_up_on_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    monkeypatch.setattr("kikitori.model.source.hub_is_reachable", lambda: pytest.fail("a request was made"))
    assert refusal(name).startswith(f"model.name={name} does not exist; give the folder of a run")


@pytest.mark.parametrize("more", [[], ["config.json"]])
def test_an_adapter_that_is_damaged_is_refused_as_one(tmp_path: Path, more: list[str]) -> None:
    for file in ("adapter_config.json", "adapter_model.safetensors", *more):
        (tmp_path / file).write_text("{}")
    assert refusal(tmp_path) == f"the adapter {tmp_path} cannot be loaded: adapter_config.json lacks peft_type"


def test_a_file_is_refused(folder: Path) -> None:
    assert "model.safetensors is a file; give the folder" in refusal(folder / "model.safetensors")


def test_a_model_of_another_kind_is_refused(folder: Path) -> None:
    edit(folder / "config.json", model_type="wav2vec2")
    assert refusal(folder).endswith("is not a Whisper: the model_type in its config.json is wav2vec2")


@pytest.mark.parametrize("kept", [[], ["tokenizer_config.json"]])
def test_a_missing_tokenizer_is_named_before_the_language(folder: Path, kept: list[str]) -> None:
    for path in [*folder.glob("*token*"), *folder.glob("vocab*"), *folder.glob("merges*"), *folder.glob("processor*")]:
        if path.name not in kept:
            path.unlink()
    message = refusal(folder)
    assert "has no tokenizer of a Whisper: tokenizer.json (or vocab.json and merges.txt) is missing" in message
    assert "copy tokenizer.json and tokenizer_config.json of the model it was made from" in message


@pytest.mark.parametrize("special", [False, True])
def test_more_tokens_than_embeddings_are_refused(micro: Whisper, tmp_path: Path, special: bool) -> None:
    size = len(micro.processor.tokenizer)
    micro.processor.tokenizer.add_tokens(["新語", "[笑]"], special_tokens=special)
    micro.save(tmp_path)
    assert f"the tokenizer has {size + 2} tokens, but the model has embeddings for {size}" in refusal(tmp_path)
    micro.model.resize_token_embeddings(size + 2)
    micro.save(tmp_path)
    assert len(load_whisper(str(tmp_path)).processor.tokenizer) == size + 2


def test_more_embeddings_than_tokens_are_accepted(micro: Whisper, tmp_path: Path) -> None:
    micro.model.resize_token_embeddings(len(micro.processor.tokenizer) + 3)
    micro.save(tmp_path)
    assert load_whisper(str(tmp_path)).model.config.vocab_size == len(micro.processor.tokenizer) + 3


@pytest.mark.parametrize(
    ("file", "changes", "token"),
    [
        ("generation_config.json", {"no_timestamps_token_id": 300}, "<|notimestamps|>"),
        ("generation_config.json", {"task_to_id": {"transcribe": 7, "translate": 8}}, "<|transcribe|>"),
        ("generation_config.json", {"lang_to_id": {"<|ja|>": 5}}, "<|ja|>"),
        # A language that the tokenizer lacks, as <|yue|> of large-v3 is in that of large-v2.
        ("generation_config.json", {"lang_to_id": {"<|xx|>": 300}}, "<|xx|>"),
        ("config.json", {"decoder_start_token_id": 3}, "<|startoftranscript|>"),
        ("config.json", {"eos_token_id": 3}, "<|endoftext|>"),
    ],
)
def test_a_tokenizer_of_another_model_is_refused(folder: Path, file: str, changes: dict[str, Any], token: str) -> None:
    edit(folder / file, **changes)
    message = refusal(folder)
    assert f"has files of different Whispers: {token} is " in message
    assert "copy tokenizer.json, tokenizer_config.json and generation_config.json of the model" in message


def test_an_english_only_model_is_refused(folder: Path) -> None:
    edit(folder / "generation_config.json", is_multilingual=False)
    assert refusal(folder).endswith("is English-only and has no language tokens; use the multilingual model")


def test_a_faulty_tokenizer_is_named_before_the_weights_are_read(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"cut off")
    edit(folder / "generation_config.json", no_timestamps_token_id=300)
    assert "has files of different Whispers" in refusal(folder)


def test_a_model_without_weights_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "cannot be loaded: " in refusal(folder)


def test_a_sharded_model_of_torch_distributed_is_named(folder: Path) -> None:
    save_file(load_file(folder / "model.safetensors"), folder / "shard-00001.safetensors")
    assert "it is sharded, in the format of torch.distributed" in refusal(folder)


def test_without_network_only_downloaded_files_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    # A port where nothing listens. The client's own retries would take minutes.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert not hub_is_reachable()
    start = time.monotonic()
    assert refusal("openai/whisper-tinyy").startswith("model.name=openai/whisper-tinyy cannot be loaded: ")
    assert time.monotonic() - start < 20


def test_offline_mode_asks_for_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: pytest.fail("a request was made"))
    assert huggingface_hub.constants.is_offline_mode()
    assert hub_is_reachable()


def test_what_is_decided_on_the_hub_holds_for_all_processes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: pytest.fail("a request was made"))
    decide_on_the_hub(str(folder))
    assert "HF_HUB_OFFLINE" not in os.environ
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: None)
    decide_on_the_hub("openai/whisper-tinyy")
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert huggingface_hub.constants.is_offline_mode()
