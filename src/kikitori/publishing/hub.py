"""Uploads a model to the Hugging Face Hub in one commit, and compares what the Hub then lists with what was sent.

An upload that is interrupted leaves no commit; weights that the Hub has already are not sent again.
"""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from kikitori.publishing.failures import explained, patient, polite_client
from kikitori.publishing.selection import size_of
from kikitori.references.hub import hub_is_reachable
from kikitori.runtime.errors import ConfigError


class Pushed(NamedTuple):
    """url: of the commit or pull request. notes: on the repository, as sentences."""

    commit: str
    url: str
    notes: list[str]


def check_name(name: str) -> None:
    """Raises ConfigError unless this can be the name of a repository on the Hub."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(
            f"{name} is no name on the Hub; give owner/model, in letters, digits, - . and _, such as my-team/whisper-ja"
        ) from error


def full_name(name: str) -> str:
    """Returns a name with its owner, by default the user. Raises ConfigError without a network or a token."""
    _check_account()
    with polite_client(), explained(name):
        return name if "/" in name else f"{patient(huggingface_hub.HfApi().whoami)['name']}/{name}"


def push(
    files: Mapping[str, Path | bytes], name: str, message: str, public: bool = False, pull_request: bool = False
) -> Pushed:
    """Creates the repository if it is missing, commits the files and reads back what the Hub lists.

    name: with its owner. Raises ConfigError with the remedy for whatever the Hub answers, and if it is not reached.
    """
    with polite_client(), explained(name):
        api = huggingface_hub.HfApi()
        notes = _prepare(api, name, public)
        added = [huggingface_hub.CommitOperationAdd(path, _content(content)) for path, content in files.items()]
        commit = patient(lambda: api.create_commit(name, added, commit_message=message, create_pr=pull_request))
        _read_back(api, name, commit.oid, files)
    return Pushed(commit.oid, commit.pr_url or str(commit.commit_url), notes)


def _content(content: Path | bytes) -> str | bytes:
    return content if isinstance(content, bytes) else str(content)


def _check_account() -> None:
    """Raises ConfigError without a network or a token, before the client tries."""
    if huggingface_hub.constants.is_offline_mode():
        raise ConfigError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it")
    if not huggingface_hub.get_token():
        raise ConfigError(
            "there is no token for the Hub; log in with hf auth login, or set HF_TOKEN to one that may write"
        )
    if not hub_is_reachable():
        raise ConfigError(f"{huggingface_hub.constants.ENDPOINT} does not answer; check the network and run this again")


def _prepare(api: huggingface_hub.HfApi, name: str, public: bool) -> list[str]:
    """Creates the repository if it is missing. Returns sentences on one that exists; its visibility is not changed."""
    try:
        found = patient(lambda: api.model_info(name))
    except RepositoryNotFoundError:
        patient(lambda: api.create_repo(name, private=not public, exist_ok=True))
        return [f"{name} is new, and {'public' if public else 'private'}"]
    if not found.private and not public:
        raise ConfigError(
            f"{name} exists and is public, and what is pushed would be, too; add --public, or choose another name"
        )
    if found.private and public:
        return [f"{name} exists and stays private; its page on the Hub has a setting for this"]
    return [f"{name} exists, and stays {'private' if found.private else 'public'}"]


def _read_back(api: huggingface_hub.HfApi, name: str, commit: str, files: Mapping[str, Path | bytes]) -> None:
    """Raises ConfigError unless the Hub lists each file with its size and checksum."""
    entries = patient(lambda: list(api.list_repo_tree(name, recursive=True, revision=commit)))
    listed: dict[str, Any] = {entry.path: entry for entry in entries}
    wrong = [path for path, content in files.items() if not _is_equal(listed.get(path), content)]
    if wrong:
        raise ConfigError(
            f"{', '.join(wrong)} of {name} has another size or checksum on the Hub than here; run this again"
        )


def _is_equal(entry: Any, content: Path | bytes) -> bool:
    """Whether an entry of the Hub has the size and checksum of a file."""
    if entry is None or getattr(entry, "size", None) != size_of(content):
        return False
    if entry.lfs is not None:
        return bool(entry.lfs.sha256 == _hash(hashlib.sha256(), content))
    start = f"blob {size_of(content)}\0".encode()  # as git computes it
    return bool(entry.blob_id == _hash(hashlib.sha1(start, usedforsecurity=False), content))


def _hash(digest: Any, content: Path | bytes) -> str:
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        return hashlib.file_digest(file, lambda: digest).hexdigest()
