"""Names of the Hub with a revision, against a Hub on loopback: what is loaded is a commit, whatever moves later."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_server import Hub, Repository, running_hub, use
from safetensors.torch import save_file

from kikitori.model.loading import load_whisper, rebuild_whisper
from kikitori.model.whisper import Whisper
from kikitori.references.pinning import pin
from kikitori.runtime.errors import ModelError

NAME = "team/whisper-ja"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as found:
        monkeypatch.setenv("KIKITORI_CACHE", str(tmp_path / "cache"))
        use(found, tmp_path / "hub", monkeypatch)
        found.repositories[NAME] = Repository(private=True)
        yield found


def add(hub: Hub, folder: Path, branch: str = "main", name: str = NAME) -> str:
    """Adds a commit with the files of a folder."""
    repository = hub.repositories.setdefault(name, Repository(private=True))
    repository.branches.setdefault(branch, repository.branches["main"])
    return repository.commit(branch, {path.name: path.read_bytes() for path in folder.iterdir()}, branch)


@pytest.fixture
def first(hub: Hub, micro: Whisper, tmp_path: Path) -> str:
    micro.save(tmp_path / "model")
    return add(hub, tmp_path / "model")


def refusal(name: str, **arguments: str) -> str:
    with pytest.raises(ModelError) as caught:
        load_whisper(name, **arguments)
    return str(caught.value)


def stop(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the Hub unreachable."""
    monkeypatch.setattr("kikitori.references.hub.hub_is_reachable", lambda: False)
    monkeypatch.setattr("kikitori.model.source.hub_is_reachable", lambda: False)


def test_a_branch_is_recorded_as_its_commit_and_loaded_as_that_later(
    hub: Hub, first: str, micro: Whisper, tmp_path: Path
) -> None:
    whisper = load_whisper(f"hub:{NAME}")
    assert (whisper.recipe["name"], whisper.recipe["revision"]) == (NAME, first)
    with torch.no_grad():
        micro.model.proj_out.weight.add_(1)
    micro.save(tmp_path / "model")
    second = add(hub, tmp_path / "model")
    again = rebuild_whisper(whisper.recipe)
    assert torch.equal(again.model.proj_out.weight, whisper.model.proj_out.weight)
    newest = load_whisper(f"hub:{NAME}@main")
    assert newest.recipe["revision"] == second
    assert torch.equal(newest.model.proj_out.weight, micro.model.proj_out.weight)
    assert load_whisper(f"hub:{NAME}@{first}").recipe["revision"] == first
    assert load_whisper(f"hub:{NAME}", revision=first).recipe["revision"] == first


def test_without_the_hub_a_branch_is_its_last_known_commit(
    hub: Hub, first: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load_whisper(f"hub:{NAME}")
    stop(hub, monkeypatch)
    assert load_whisper(f"hub:{NAME}").recipe["revision"] == first
    assert caplog.text.count("the Hugging Face Hub cannot be reached") == 1
    assert "was not downloaded before, and the Hugging Face Hub cannot" in refusal("hub:team/other")
    requests = len(hub.requests)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert pin(f"hub:{NAME}@main") == f"hub:{NAME}@{first}"
    assert "other: was not downloaded before, and HF_HUB_OFFLINE is set" in refusal("hub:team/other")
    assert len(hub.requests) == requests


def test_a_reference_is_pinned_before_anything_else_is_imported(tmp_path: Path) -> None:
    code = "from kikitori.references.pinning import pin; pin('hub:team/other')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert "ModelError: model.name=hub:team/other: was not downloaded before" in done.stderr


def test_what_the_hub_does_not_have_is_named(hub: Hub, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(f"hub:{NAME}@v9") == f"model.name=hub:{NAME}@v9: the model has no revision v9 on the Hub"
    assert "there is no such model on the Hub; of a private one, log in" in refusal("hub:team/nonesuch")
    hub.repositories["team/empty"] = Repository(private=False)
    assert "hub:team/empty holds no model: there is no config.json in it" in refusal("hub:team/empty")
    assert "has a revision of its own; leave model.revision out" in refusal(f"hub:{NAME}@main", revision="main")
    hub.faults.append(("GET /api/models", 500, {}))
    assert "the Hub did not answer" in refusal(f"hub:{NAME}@main")
    monkeypatch.setenv("HF_TOKEN", "hf_another_0123456789")
    assert "there is no such model on the Hub; of a private one, log in" in refusal(f"hub:{NAME}")


def test_a_hub_that_never_answers_is_an_error(hub: Hub, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kikitori.references.hub.ANSWER_S", 0.2)
    hub.hold = "GET /api/models"
    try:
        assert "the Hub did not answer" in refusal(f"hub:{NAME}")
    finally:
        hub.released.set()


def test_an_adapter_of_the_hub_is_merged_into_its_base(hub: Hub, first: str, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "base_model_name_or_path": NAME}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"revision": first}))
    layer = "base_model.model.model.decoder.layers.0.self_attn.q_proj"
    parts = {f"{layer}.lora_A.weight": torch.ones(4, 32), f"{layer}.lora_B.weight": torch.ones(32, 4)}
    save_file(parts, folder / "adapter_model.safetensors")
    commit = add(hub, folder, name="team/adapter")
    assert "is an adapter of team/whisper-ja, which was not downloaded before" in refusal("hub:team/adapter")
    base = load_whisper(f"hub:{NAME}").model.model.decoder.layers[0].self_attn.q_proj.weight
    whisper = load_whisper("hub:team/adapter", base=f"hub:{NAME}")
    assert torch.allclose(whisper.model.model.decoder.layers[0].self_attn.q_proj.weight, base + 8)
    assert (whisper.recipe["name"], whisper.recipe["base"]) == (f"hub:team/adapter@{commit}", f"hub:{NAME}@{first}")
    # The base is here now, and the adapter, too.
    requests = len([line for line in hub.requests if "team/adapter" in line])
    again = rebuild_whisper({**whisper.recipe, "base": None})
    assert torch.equal(
        again.model.model.decoder.layers[0].self_attn.q_proj.weight,
        whisper.model.model.decoder.layers[0].self_attn.q_proj.weight,
    )
    assert len([line for line in hub.requests if "team/adapter" in line]) == requests
