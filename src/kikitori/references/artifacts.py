"""Artifacts of Weights & Biases: downloaded into the cache, verified, and used from there.

An artifact may be a stranger's, and its manifest may name anything. So only the files of a model's folder are
downloaded, each by its own name into a new folder that only this user can read, and nothing that a manifest refers to
elsewhere. A version is complete when its folder exists: what is interrupted continues with the next file.
"""

import base64
import hashlib
import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import xxhash
from filelock import FileLock

from kikitori.references.names import Artifact, parse_reference
from kikitori.references.wandb_server import (
    check_reachable,
    check_surroundings,
    has_credentials,
    host,
    is_offline,
    server,
)
from kikitori.runtime.errors import ModelError, one_line, remedy_of
from kikitori.runtime.files import is_regular, read_json, write_json
from kikitori.runtime.paths import cache_folder, private_folder

# What the files of a model's folder end in; a pickle is none of them.
SUFFIXES = (".safetensors", ".json", ".txt", ".md", ".jinja")
# Bytes: of a file besides the weights, of all together, and how many files.
MAX_TEXT, MAX_TOTAL, MAX_FILES = 2**26, 2**35, 200
# Seconds for one answer of the server.
TIMEOUT_S = 30
ALIASES = "aliases.json"

log = logging.getLogger(__name__)


def artifact_folder(artifact: Artifact) -> Path:
    """The folder of a version in the cache, whether it is there or not."""
    assert artifact.entity
    return _folder(artifact) / artifact.alias


def _folder(artifact: Artifact) -> Path:
    """The folder of all versions of an artifact; that of an unnamed entity is the user's own on this server."""
    places = (host(), artifact.entity or "-", artifact.project, artifact.name)
    return cache_folder().joinpath("artifacts", *(quote(place, safe=" ") for place in places))


def pin_artifact(artifact: Artifact) -> Artifact:
    """Returns the version that an alias stands for, after downloading it: what the server says, or without one, the
    last one known. A version that was downloaded before needs no network.

    Raises ModelError if there is no such artifact, or it holds no model, or was not downloaded before.
    """
    if artifact.is_immutable and artifact_folder(artifact).is_dir():
        return artifact
    if is_offline():
        return _last_known(artifact, "WANDB_MODE forbids the network")
    if not has_credentials():
        return _last_known(artifact, "there is no API key for it: wandb login, or WANDB_API_KEY")
    check_surroundings()
    try:
        check_reachable(server())
    except TimeoutError as error:
        known = _last_known(artifact, one_line(error))
        log.warning("%s; using %s, the last known version", one_line(error), known)
        return known
    return _fetch(artifact)


def _last_known(artifact: Artifact, why: str) -> Artifact:
    """The version that an alias stood for when the server was asked last."""
    path = _folder(artifact) / ALIASES
    known = read_json(path, {str: {"entity!": str, "version!": str}}) if is_regular(path) else {}
    if artifact.alias in known:
        entity, version = known[artifact.alias]["entity"], known[artifact.alias]["version"]
        pinned = artifact._replace(entity=entity, alias=version)
        if pinned.is_immutable and artifact_folder(pinned).is_dir():
            return pinned
    raise ModelError(f"model.name={artifact}: was not downloaded before, and {why}")


def _fetch(artifact: Artifact) -> Artifact:
    """Asks the server for the artifact's version, and downloads it if it is not there."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # W&B would send figures on its own use
    import wandb

    try:
        # Without a login, this would prompt.
        api = wandb.Api(overrides={"base_url": server()}, timeout=TIMEOUT_S)
        found = api.artifact(artifact.path)
        pinned = Artifact(found.entity, found.project, found.name.partition(":")[0], found.version)
        parse_reference(str(pinned))  # these names are the server's, and become names of folders
        if not pinned.is_immutable:
            raise ModelError(f"model.name={artifact}: has no version yet; wait until its run has uploaded it")
        with FileLock(private_folder(_folder(pinned)) / ".lock"):
            if not artifact_folder(pinned).is_dir():
                _download(found, pinned)
            _remember(artifact, pinned)
    except ModelError:
        raise
    except Exception as error:  # W&B raises many types
        raise ModelError(f"model.name={artifact}: {_reason(error)}") from error
    return pinned


def _reason(error: Exception) -> str:
    """What an error of W&B means, with the remedy."""
    line = one_line(error)
    if any(words in line.lower() for words in ("not found", "does not exist", "could not find", "404")):
        return "there is no such artifact, version or alias; its page at Weights & Biases shows its full name"
    if any(words in line.lower() for words in ("401", "403", "permission", "api key", "relogin", "unauthorized")):
        return f"Weights & Biases does not let you read it ({line}); log in as a member of its team: wandb login"
    return remedy_of(error) or f"it cannot be downloaded: {line}"


def _remember(artifact: Artifact, pinned: Artifact) -> None:
    """Writes down which version an alias stands for, for a time without network."""
    path = private_folder(_folder(artifact)) / ALIASES
    known = read_json(path) if is_regular(path) else {}
    write_json(path, {**known, artifact.alias: {"entity": pinned.entity, "version": pinned.alias}})


def _download(found: Any, pinned: Artifact) -> None:
    """Downloads the files of a version, one at a time, and verifies each."""
    digest = found.digest  # what the server says; once the manifest is here, that of the manifest
    entries = {str(path): entry for path, entry in found.manifest.entries.items()}
    if found.manifest.digest() != digest:
        raise ModelError(f"model.name={pinned}: its manifest is not the one that was uploaded; use another version")
    wanted = check_entries(pinned, entries)
    check_sizes(pinned, wanted, {file.name: file.size for file in found.files()})
    total = sum(entry.size for entry in wanted.values())
    log.info("downloading %s (%.0f MB)", pinned, total / 1e6)
    unfinished = private_folder(_folder(pinned) / f".{pinned.alias}.partial")
    for name, entry in wanted.items():
        path = unfinished / name
        if not (is_regular(path) and _digest(path, entry) == entry.digest):
            path.unlink(missing_ok=True)
            found.get_entry(name).download(root=str(unfinished), skip_cache=True)
        if not is_regular(path) or path.stat().st_size != entry.size or _digest(path, entry) != entry.digest:
            raise ModelError(f"model.name={pinned}: {name} was damaged on the way; run the command again")
    for path in set(unfinished.iterdir()) - {unfinished / name for name in wanted}:
        path.unlink()
    unfinished.rename(artifact_folder(pinned))


def check_entries(artifact: Artifact, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of a manifest that a model's folder needs, by name.

    Raises ModelError for one that leads out of the folder or refers to another place, and if there is no model.
    """
    where = f"model.name={artifact}"
    for path, entry in entries.items():
        if getattr(entry, "ref", None) is not None:
            raise ModelError(f"{where}: {path[:200]} is a file elsewhere, not in the artifact; use another artifact")
        if path.startswith("/") or "\\" in path or ".." in path.split("/"):
            raise ModelError(f"{where}: {path[:200]} lies outside of the artifact; use another artifact")
    wanted = {path: entry for path, entry in entries.items() if Path(path).name == path and path.endswith(SUFFIXES)}
    if not wanted.keys() & {"config.json", "adapter_config.json"}:
        raise ModelError(
            f"{where} holds no model: there is no config.json in it; give one that was uploaded by a training with "
            "logger.wandb.log_model=true"
        )
    if not any(path.endswith(".safetensors") for path in wanted):
        others = [path for path in entries if path.endswith((".bin", ".pt", ".ckpt", ".pth"))]
        instead = f"; {others[0][:200]} may run code and is not read" if others else ""
        raise ModelError(f"{where} holds no weights in safetensors{instead}")
    return wanted


def check_sizes(artifact: Artifact, wanted: Mapping[str, Any], stored: Mapping[str, int]) -> None:
    """Raises ModelError for more than a model has, or where the manifest and the server state different sizes.

    stored: what the server has, in bytes by name.
    """
    where = f"model.name={artifact}"
    if len(wanted) > MAX_FILES:
        raise ModelError(f"{where} has {len(wanted)} files, more than any model; use another artifact")
    for name, entry in wanted.items():
        if stored.get(name) != entry.size:
            raise ModelError(
                f"{where}: {name[:200]} has {stored.get(name)} bytes on the server, but {entry.size} in the manifest; "
                "use another version"
            )
        if not name.endswith(".safetensors") and entry.size > MAX_TEXT:
            raise ModelError(f"{where}: {name[:200]} has over {MAX_TEXT // 2**20} MB, as no file of a Whisper has")
    if sum(entry.size for entry in wanted.values()) > MAX_TOTAL:
        raise ModelError(f"{where} has over {MAX_TOTAL // 2**30} GB, more than any Whisper; use another artifact")


def _digest(path: Path, entry: Any) -> str:
    """The digest of a file as its manifest writes it."""
    is_xxh = "xxh128" in str(entry.digest_algorithm()).lower()
    kind: Any = xxhash.xxh128 if is_xxh else partial(hashlib.md5, usedforsecurity=False)
    with path.open("rb") as file:
        return base64.b64encode(hashlib.file_digest(file, kind).digest()).decode()
