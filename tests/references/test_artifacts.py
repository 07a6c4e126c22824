"""Artifacts of Weights & Biases: which version an alias is, what is downloaded, and what a stranger's may not hold."""

import base64
import errno
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
import xxhash
from artifact_server import KEY, running_artifacts

from kikitori.model.loading import load_whisper
from kikitori.model.whisper import Whisper
from kikitori.references import artifacts
from kikitori.references.artifacts import artifact_folder
from kikitori.references.names import Artifact
from kikitori.runtime.errors import ConfigError, ModelError

NAME = "wandb:team/asr/model-a1"


class Entry:
    """A file of an artifact, as the client shows it."""

    def __init__(self, path: str, content: bytes, **changes: Any) -> None:
        self.path, self.content = path, content
        self.digest = base64.b64encode(hashlib.md5(content).digest()).decode()
        self.size: int = changes.get("size", len(content))
        self.ref: str | None = changes.get("ref")
        self.is_xxh = False

    def digest_algorithm(self) -> str:
        return "MANIFEST_XXH128" if self.is_xxh else "MANIFEST_MD5"

    def download(self, root: str, skip_cache: bool) -> None:
        Path(root, self.path).write_bytes(self.content)


class Manifest:
    def __init__(self, entries: list[Entry], digest: str) -> None:
        self.entries, self._digest = {entry.path: entry for entry in entries}, digest

    def digest(self) -> str:
        return self._digest


class Stored:
    """A name and a size, as the server lists them."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size


class Found:
    """A version, as the public API returns it."""

    def __init__(self, version: str, entries: list[Entry]) -> None:
        self.entity, self.project, self.name, self.version = "team", "asr", "model-a1:best", version
        self.digest, self.manifest = "d1", Manifest(entries, "d1")

    def files(self) -> list[Stored]:
        return [Stored(entry.path, len(entry.content)) for entry in self.manifest.entries.values()]

    def get_entry(self, name: str) -> Entry:
        return self.manifest.entries[name]


class Server:
    """The public API: what each name is, and the names that were asked for."""

    def __init__(self) -> None:
        self.versions: dict[str, Found] = {}
        self.asked: list[str] = []

    def __call__(self, **_: Any) -> "Server":
        return self

    def artifact(self, name: str) -> Found:
        self.asked.append(name)
        if name not in self.versions:
            raise ValueError(f"artifact membership {name!r} not found in 'team/asr'")
        return self.versions[name]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    found = Server()
    monkeypatch.setenv("KIKITORI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(wandb, "Api", found)
    monkeypatch.setattr(artifacts, "check_reachable", lambda address: None)
    return found


@pytest.fixture
def files(micro: Whisper, tmp_path: Path) -> list[Entry]:
    micro.save(tmp_path / "saved")
    return [Entry(path.name, path.read_bytes()) for path in sorted((tmp_path / "saved").iterdir())]


def refusal(name: str = f"{NAME}:best") -> str:
    with pytest.raises(ModelError) as caught:
        load_whisper(name)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def unreachable(address: str) -> None:
    raise TimeoutError(f"{address} does not answer within 3 s")


def test_an_alias_is_loaded_and_its_version_recorded(server: Server, files: list[Entry], micro: Whisper) -> None:
    server.versions["team/asr/model-a1:best"] = Found("v3", files)
    whisper = load_whisper(f"{NAME}:best")
    assert whisper.arguments["name"] == whisper.recipe["name"] == f"{NAME}:v3"
    weights = micro.model.state_dict()
    assert all(torch.equal(weights[name], found) for name, found in whisper.model.state_dict().items())


@pytest.mark.parametrize("part", ["entity", "project", "name"])
def test_a_name_of_the_server_that_leads_out_of_the_cache_is_refused(
    server: Server, files: list[Entry], tmp_path: Path, part: str
) -> None:
    found = server.versions["team/asr/model-a1:best"] = Found("v0", files)
    setattr(found, part, "..")
    assert "is no artifact" in refusal()
    assert not (tmp_path / "cache").exists()


def test_digests_of_both_kinds_are_verified(server: Server, files: list[Entry]) -> None:
    server.versions["team/asr/model-a1:best"] = Found("v0", files)
    for entry in files:
        entry.is_xxh = True
    assert "was damaged on the way" in refusal()
    for entry in files:
        entry.digest = base64.b64encode(xxhash.xxh128(entry.content).digest()).decode()
    assert load_whisper(f"{NAME}:best").arguments["name"] == f"{NAME}:v0"


def test_a_version_that_was_downloaded_needs_no_server(server: Server, files: list[Entry]) -> None:
    server.versions["team/asr/model-a1:v3"] = Found("v3", files)
    load_whisper(f"{NAME}:v3")
    load_whisper(f"{NAME}:v3")
    assert server.asked == ["team/asr/model-a1:v3"]


def test_without_the_server_an_alias_is_its_last_known_version(
    server: Server, files: list[Entry], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.versions["team/asr/model-a1:best"] = Found("v3", files)
    load_whisper(f"{NAME}:best")
    monkeypatch.setattr(artifacts, "check_reachable", unreachable)
    assert load_whisper(f"{NAME}:best").arguments["name"] == f"{NAME}:v3"
    assert f"using {NAME}:v3, the last known version" in caplog.text
    assert "model-a1:other: was not downloaded before, and https://" in refusal(f"{NAME}:other")


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("WANDB_MODE", "offline", "WANDB_MODE forbids the network"),
        ("WANDB_API_KEY", None, "there is no API key for it"),
    ],
)
def test_what_forbids_the_network_is_named(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, value: str | None, reason: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(variable, value) if value else monkeypatch.delenv(variable)
    assert f"best: was not downloaded before, and {reason}" in refusal()
    assert server.asked == []


def test_an_unknown_alias_is_named(server: Server) -> None:
    assert refusal() == (
        f"model.name={NAME}:best: there is no such artifact, version or alias; its page at Weights & Biases shows its "
        "full name"
    )


def test_settings_in_the_working_folder_are_not_obeyed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nbase_url = http://example.org\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="may be a stranger's"):
        load_whisper(f"{NAME}:best")


WEIGHTS = Entry("model.safetensors", b"0")
CONFIG = Entry("config.json", b"{}")


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([Entry("notes.txt", b"")], "holds no model: there is no config.json in it"),
        ([CONFIG, Entry("pytorch_model.bin", b"")], "no weights in safetensors; pytorch_model.bin may run code"),
        ([CONFIG, WEIGHTS, Entry("../x.json", b"")], "../x.json lies outside of the artifact"),
        ([CONFIG, WEIGHTS, Entry("a/../../x.json", b"")], "a/../../x.json lies outside of the artifact"),
        ([CONFIG, WEIGHTS, Entry("/etc/x.json", b"")], "/etc/x.json lies outside of the artifact"),
        ([CONFIG, WEIGHTS, Entry("..\\x.json", b"")], "..\\x.json lies outside of the artifact"),
        ([CONFIG, WEIGHTS, Entry("v.json", b"", ref="file:///etc/passwd")], "v.json is a file elsewhere"),
        ([CONFIG, Entry("model.safetensors", b"0", size=9)], "model.safetensors has 1 bytes on the server, but 9"),
        ([CONFIG, WEIGHTS, *(Entry(f"{i}.json", b"") for i in range(300))], "has 302 files, more than any model"),
    ],
)
def test_a_hostile_manifest_is_refused_before_a_file_is_downloaded(
    server: Server, monkeypatch: pytest.MonkeyPatch, entries: list[Entry], reason: str
) -> None:
    monkeypatch.setattr(Entry, "download", lambda *_, **__: pytest.fail("a file was downloaded"))
    server.versions["team/asr/model-a1:best"] = Found("v0", entries)
    assert reason in refusal()


def test_files_that_are_larger_than_any_model_has_are_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch, files: list[Entry]
) -> None:
    server.versions["team/asr/model-a1:best"] = Found("v0", files)
    monkeypatch.setattr(artifacts, "MAX_TOTAL", 1000)
    assert "more than any Whisper" in refusal()
    monkeypatch.setattr(artifacts, "MAX_TEXT", 100)
    assert "as no file of a Whisper has" in refusal()


def test_only_the_files_of_a_model_are_downloaded(server: Server, files: list[Entry], monkeypatch: Any) -> None:
    more = [Entry("optimizer.pt", b"pickle"), Entry("code.py", b"import os"), Entry("logs/a.json", b"{}")]
    server.versions["team/asr/model-a1:best"] = Found("v0", [*files, *more])
    load_whisper(f"{NAME}:best")
    folder = artifact_folder(Artifact("team", "asr", "model-a1", "v0"))
    assert sorted(path.name for path in folder.iterdir()) == sorted(entry.path for entry in files)


def test_a_manifest_that_was_exchanged_is_refused(server: Server, files: list[Entry]) -> None:
    found = server.versions["team/asr/model-a1:best"] = Found("v0", files)
    found.digest = "another"
    assert "its manifest is not the one that was uploaded" in refusal()


def test_what_was_damaged_on_the_way_or_is_no_file_is_not_used(
    server: Server, files: list[Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.versions["team/asr/model-a1:best"] = Found("v0", files)
    folder = artifact_folder(Artifact("team", "asr", "model-a1", "v0"))
    write = Entry.download
    monkeypatch.setattr(Entry, "download", lambda self, root, **_: Path(root, self.path).write_bytes(b"0" * self.size))
    assert "was damaged on the way; run the command again" in refusal()
    monkeypatch.setattr(Entry, "download", lambda self, root, **_: Path(root, self.path).symlink_to("/etc/passwd"))
    assert "was damaged on the way" in refusal()
    assert not folder.exists()
    monkeypatch.setattr(Entry, "download", write)
    load_whisper(f"{NAME}:best")
    assert folder.stat().st_mode & 0o777 == 0o700


def test_an_interrupted_download_continues_with_the_next_file(
    server: Server, files: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.versions["team/asr/model-a1:best"] = Found("v0", files)
    downloaded: list[str] = []

    def download(self: Entry, root: str, **_: Any) -> None:
        if len(downloaded) == 3:
            downloaded.append("interrupted")
            raise KeyboardInterrupt
        downloaded.append(self.path)
        Path(root, self.path).write_bytes(self.content)

    monkeypatch.setattr(Entry, "download", download)
    with pytest.raises(KeyboardInterrupt):
        load_whisper(f"{NAME}:best")
    load_whisper(f"{NAME}:best")
    assert sorted(downloaded) == sorted(["interrupted", *(entry.path for entry in files)])


def test_a_full_disk_is_named_with_the_remedy(server: Server, files: list[Entry], monkeypatch: Any) -> None:
    def full(self: Entry, root: str, **_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", root)

    server.versions["team/asr/model-a1:best"] = Found("v0", files)
    monkeypatch.setattr(Entry, "download", full)
    assert "No space left on device; free space" in refusal()


def test_a_revision_belongs_to_the_hub(server: Server) -> None:
    with pytest.raises(ModelError, match=r"model\.revision=main: wandb:.* has a revision of its own"):
        load_whisper(f"{NAME}:best", revision="main")


@pytest.fixture
def real_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    with running_artifacts() as found:
        monkeypatch.setenv("KIKITORI_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("WANDB_BASE_URL", found.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.delenv("WANDB_MODE")
        yield found


@pytest.mark.long
def test_the_real_client_downloads_a_version(real_server: Any, files: list[Entry], micro: Whisper) -> None:
    content = {entry.path: entry.content for entry in files}
    real_server.add("model-a1", {"config.json": b"{}"}, "best")
    real_server.add("model-a1", content, "best")
    whisper = load_whisper(f"{NAME}:best")
    assert whisper.arguments["name"] == f"{NAME}:v1"
    weights = micro.model.state_dict()
    assert all(torch.equal(weights[name], found) for name, found in whisper.model.state_dict().items())
    assert not [line for line in real_server.requests if "otel" in line]
    requests = len(real_server.requests)
    load_whisper(f"{NAME}:v1")
    assert len(real_server.requests) == requests
    assert "there is no such artifact" in refusal(f"{NAME}:v7")
    assert "there is no such artifact" in refusal("wandb:team/other/model-a1:best")
    hostile = real_server.add("model-a1", content, "best")
    hostile.entries["config.json"]["ref"] = "file:///etc/passwd"
    assert "config.json is a file elsewhere" in refusal()
    exchanged = real_server.add("model-a1", content, "best")
    exchanged.digest = "0" * 32
    assert "its manifest is not the one that was uploaded" in refusal()


@pytest.mark.long
def test_what_a_training_uploads_is_downloaded(real_server: Any, files: list[Entry], tmp_path: Path) -> None:
    uploaded = wandb.Artifact("model-a1", "model")  # as with logger.wandb.log_model=true
    uploaded.add_dir(str(tmp_path / "saved"), policy="immutable")
    version = real_server.add("model-a1", {entry.path: entry.content for entry in files}, "best")
    version.entries, version.digest = uploaded.manifest.to_manifest_json()["contents"], uploaded.digest
    assert version.entries.keys() == {entry.path for entry in files}
    assert load_whisper(f"{NAME}:best").arguments["name"] == f"{NAME}:v0"


@pytest.mark.long
def test_the_real_client_names_a_key_that_is_refused(real_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", 40 * "x")
    message = refusal()
    assert "Weights & Biases does not let you read it" in message
    assert 40 * "x" not in message
