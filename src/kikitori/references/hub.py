"""The Hugging Face Hub: whether it responds, which commit a revision is, and the files of adapters.

Models are downloaded by transformers. Adapters are read here alone, from regular files of the cache.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub.constants  # which the package alone does not import
from filelock import FileLock
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from kikitori.references.names import HubModel
from kikitori.runtime.errors import ModelError, one_line, remedy_of
from kikitori.runtime.paths import cache_folder, private_folder

# Seconds to wait for an answer of the Hub. Without one, only files that were downloaded before are used.
HUB_TIMEOUT_S = 5.0
# Seconds to wait for what the Hub says of a model: without a limit, its client waits for ever.
ANSWER_S = 30.0
MODEL, ADAPTER = "config.json", "adapter_config.json"
# The files of an adapter, see `kikitori.adapters.folder`.
ADAPTER_FILES = [ADAPTER, "adapter_model.safetensors", "kikitori.json"]


def hub_is_reachable() -> bool:
    """Returns whether the Hugging Face Hub responds. Otherwise its client would retry each file for half a minute."""
    if huggingface_hub.constants.is_offline_mode():  # set by HF_HUB_OFFLINE; the client uses no network then
        return True
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
    except Exception:  # the HTTP library raises errors of many classes
        return False
    return True


def pin_revision(model: HubModel) -> HubModel:
    """Returns the model with the commit of its revision: what the Hub says, or without network, the last one known.

    Raises ModelError if there is no such model or revision, or it was not downloaded before.
    """
    if model.is_immutable:
        return model
    if huggingface_hub.constants.is_offline_mode():
        return _last_known(model, "HF_HUB_OFFLINE is set")
    if not hub_is_reachable():
        return _last_known(model, "the Hugging Face Hub cannot be reached")
    with _explained(model):
        files = _files(model)
        for file in (MODEL, ADAPTER):
            if file in files:  # which also records the commit, for a time without network
                path = huggingface_hub.hf_hub_download(model.name, file, revision=model.revision)
                return HubModel(model.name, _commit(path))
    raise ModelError(f"model.name={model} holds no model: there is no config.json in it; give the name of a Whisper")


def _files(model: HubModel) -> set[str]:
    """The names of the files of a model on the Hub."""
    info = huggingface_hub.HfApi().model_info(model.name, revision=model.revision, timeout=ANSWER_S)
    return {file.rfilename for file in info.siblings or []}


def _commit(path: str) -> str:
    """The commit of a file in the client's cache: .../snapshots/COMMIT/config.json."""
    return Path(path).parent.name


@contextmanager
def _explained(model: HubModel) -> Iterator[None]:
    """Raises what the Hub refuses as ModelError with the remedy."""
    try:
        yield
    except RevisionNotFoundError as error:
        raise ModelError(f"model.name={model}: the model has no revision {model.revision} on the Hub") from error
    except GatedRepoError as error:
        remedy = "its owner decides who may load it; ask for access on its page of the Hub"
        raise ModelError(f"model.name={model}: {remedy}") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"model.name={model}: there is no such model on the Hub; of a private one, log in with hf auth login or "
            "set HF_TOKEN"
        ) from error
    except Exception as error:  # the HTTP library raises errors of many classes
        reason = remedy_of(error) or f"the Hub did not answer: {one_line(error)}"
        raise ModelError(f"model.name={model}: {reason}") from error


def _last_known(model: HubModel, why: str) -> HubModel:
    """The commit that the revision was when it was downloaded last."""
    for file in (MODEL, ADAPTER):
        path = huggingface_hub.try_to_load_from_cache(model.name, file, revision=model.revision)
        if isinstance(path, str):
            return HubModel(model.name, _commit(path))
    raise ModelError(f"model.name={model}: was not downloaded before, and {why}")


def adapter_folder(model: HubModel) -> Path:
    """The folder of an adapter in the cache, whether it is there or not."""
    return cache_folder() / "adapters" / model.name / (model.revision or "main")


def fetch_adapter(model: HubModel) -> bool:
    """Downloads the adapter of a pinned name; returns whether it is one, and not a model. Raises ModelError."""
    folder = adapter_folder(model)
    if folder.is_dir():
        return True
    is_known = isinstance(huggingface_hub.try_to_load_from_cache(model.name, MODEL, revision=model.revision), str)
    if is_known or huggingface_hub.constants.is_offline_mode() or not hub_is_reachable():
        return False
    with _explained(model), FileLock(private_folder(folder.parent) / ".lock"):
        files = _files(model)
        if MODEL in files or ADAPTER not in files:
            return False
        if not folder.is_dir():
            partial = folder.with_name(f".{folder.name}.partial")
            for file in files.intersection(ADAPTER_FILES):
                huggingface_hub.hf_hub_download(model.name, file, revision=model.revision, local_dir=partial)
            shutil.rmtree(partial / ".cache", ignore_errors=True)
            partial.rename(folder)
    return True
