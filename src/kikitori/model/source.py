"""Finds the files of a pretrained model, and checks that they belong to a Whisper and to each other.

Each ModelError names what is missing or wrong and the remedy, before any weights are loaded or downloaded.
"""

import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from tokenizers.pre_tokenizers import ByteLevel
from transformers import GenerationConfig, WhisperConfig, WhisperTokenizer

from kikitori.adapters.folder import SavedAdapter, is_adapter
from kikitori.model.processor import END, START
from kikitori.references.hub import fetch_adapter, hub_is_reachable
from kikitori.references.names import HubModel, is_reference, parse_reference
from kikitori.references.pinning import local_path, pin
from kikitori.runtime.distributed import rank
from kikitori.runtime.errors import ModelError
from kikitori.runtime.files import expanded

# Bytes of a file that transformers reads at once; a tokenizer.json has 4 MB.
MAX_BYTES = 2**26
# Embeddings of an English-only Whisper.
ENGLISH_ONLY = 51_864

log = logging.getLogger(__name__)


def locate(name: str, revision: str | None, offline: bool = False) -> tuple[str, dict[str, Any]]:
    """Returns the folder or Hub name of a model, and the arguments with which all its files are loaded.

    name: of a model on the Hub, a model's folder, or that of a run, or a pinned artifact. offline: whether only earlier
    downloads are used. Raises ModelError if it cannot be any of these.
    """
    path = local_path(name)
    arguments: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": False}
    if path.is_dir():
        if revision:
            raise ModelError(
                f"model.revision={revision} is for a name on the Hub, and {name} is a folder; leave it out"
            )
        return str(model_folder(path, f"model.name={name}")), arguments
    if path.exists():
        raise ModelError(f"model.name={name} is a file; give the folder of a run, or a folder with a model")
    if is_missing(name):
        raise ModelError(
            f"model.name={name} does not exist; give the folder of a run, a folder with a model, or a name on the Hub"
        )
    if offline or not hub_is_reachable():
        if not offline:
            _warn_of_offline_use(name)
        arguments["local_files_only"] = True
    return name, arguments


def pinned(name: str, revision: str | None) -> tuple[str, str | None]:
    """Returns name and revision of a model, in which a reference is one that never changes.

    hub:owner/name@revision becomes owner/name with its commit as revision, where that is a model and no adapter, and an
    artifact its version. Other names are returned as they are. Raises ModelError if there is nothing of this name.
    """
    reference = parse_reference(name)
    if revision and reference and (not isinstance(reference, HubModel) or reference.revision):
        raise ModelError(f"model.revision={revision}: {name} has a revision of its own; leave model.revision out")
    if isinstance(reference, HubModel):
        name = str(reference._replace(revision=reference.revision or revision))
    model = parse_reference(name := pin(name))
    if isinstance(model, HubModel):
        return (name, None) if fetch_adapter(model) else (model.name, model.revision)
    return name, revision


def resolved(name: str) -> str:
    """Returns a model's name as it can be used from anywhere: its whole path if it is a folder."""
    path = expanded(name)
    return str(model_folder(path, name).resolve()) if path.is_dir() and not is_adapter(path) else name


def base_of(adapter: SavedAdapter, base: str | None) -> str:
    """Returns the name of the model that an adapter is merged into: the one given, or the one that it names itself.

    Raises ModelError if there is none, or it is no name of a model.
    """
    name = base or adapter.base
    if name is None:
        raise ModelError(f"the adapter {adapter.folder} does not name its base; pass the model as model.base")
    if (path := _place(name)).is_dir() and is_adapter(path):
        raise ModelError(
            f"the base {name} of {adapter.folder} is an adapter itself; use model/ of its run, which holds both"
        )
    if base is not None or Path(name).is_dir() or (is_reference(name) and path.is_dir()):
        return name
    # What a file names is not followed to the network.
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        raise ModelError(f"the adapter {adapter.folder} names {name}, which is no model; pass its base as model.base")
    if not huggingface_hub.try_to_load_from_cache(name, "config.json", revision=adapter.revision):
        raise ModelError(
            f"{adapter.folder} is an adapter of {name}, which was not downloaded before; to load it from the Hub, pass "
            f"model.base={name}"
        )
    return name


def _place(name: str) -> Path:
    """The path of a model, or one that does not exist."""
    try:
        return local_path(name)
    except ModelError:  # a file may name anything
        return Path(name)


def is_path(name: str) -> bool:
    """Returns whether a model's name can only be a path: names on the Hub have at most one slash, between words."""
    return not is_reference(name) and (name.startswith(("/", ".", "~")) or name.count("/") > 1 or "\\" in name)


def is_missing(name: str) -> bool:
    """Returns whether a model's name is a path that does not exist.

    A name on the Hub has one slash. outputs/my-run could be one, but hardly where there is a folder outputs.
    """
    path = expanded(name)
    is_one = is_path(name) or (not is_reference(name) and path.parent.is_dir())
    return is_one and not path.exists()


def decide_on_the_hub(name: str) -> None:
    """Decides whether the Hub is used, for this process and all that it starts, so that they load the same files.

    name: of the model; nothing is decided for a folder or an artifact.
    """
    if not _place(name).is_dir() and not hub_is_reachable():
        _warn_of_offline_use(name)
        os.environ["HF_HUB_OFFLINE"] = "1"
        huggingface_hub.constants.HF_HUB_OFFLINE = True  # was read from the environment when it was imported


def _warn_of_offline_use(name: str) -> None:
    if rank() == 0:
        log.warning(
            "the Hugging Face Hub cannot be reached; using earlier downloads of %s (HF_HUB_OFFLINE=1 skips the check)",
            name,
        )


def model_folder(folder: Path, given_as: str) -> Path:
    """Returns the folder that holds the model, given the folder of a run or of a model.

    given_as: how the user named the folder, such as `checkpoint=outputs/a`. Raises ModelError if it holds no model.
    """
    for path in (folder / "model", folder):
        if (path / "config.json").is_file():
            break
    else:
        raise ModelError(f"{given_as} holds no model: {_instead_of_a_model(folder)}")
    if is_adapter(path):
        raise ModelError(f"{given_as} holds no model: {_ADAPTER}")
    if any(path.glob("shard-*.safetensors")):
        raise ModelError(f"{given_as} cannot be loaded: it is sharded, in the format of torch.distributed")
    return path


_ADAPTER = "only an adapter (adapter_config.json); give the model that it was trained on"


def _instead_of_a_model(folder: Path) -> str:
    """Describes a folder without config.json, and how to get one with a model."""
    if is_adapter(folder):
        return _ADAPTER
    if (folder / "results.json").exists():
        return "a run saves its model when it completes; resume this one with kikitori train resume=FOLDER"
    if found := sorted(path.name for path in folder.iterdir() if path.suffix in (".pt", ".bin", ".onnx", ".gguf")):
        return (
            f"{found[0]} is in another format. Give a folder that save_pretrained wrote (of OpenAI's own models: "
            "the name on the Hub, such as openai/whisper-small)"
        )
    return (
        (
            "there is neither config.json nor model/config.json; give the folder of a completed run, or one that "
            "save_pretrained wrote"
        )
        if any(folder.iterdir())
        else "it is empty"
    )


def check_files(name: str, folder: Path) -> None:
    """Raises ModelError for a model's folder with a file that would fill the memory, or with weights elsewhere."""
    for path in (*folder.iterdir(), *folder.glob("additional_chat_templates/*")):
        if path.suffix in (".json", ".txt", ".jinja") and path.is_file() and path.stat().st_size > MAX_BYTES:
            raise ModelError(
                f"model.name={name}: {path.name} has over {MAX_BYTES // 2**20} MB, as no file of a Whisper has besides "
                "its weights; use another model, or move that file to another folder"
            )
    index = folder / "model.safetensors.index.json"
    files = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values() if index.is_file() else ()
    if outside := [file for file in files if Path(file).name != file]:
        raise ModelError(f"model.name={name}: {index.name} names {outside[0]}, a file outside of it; use another model")


def check_type(name: str, config: Mapping[str, Any]) -> None:
    """Raises ModelError unless config.json is that of a plain Whisper."""
    if (found := config.get("model_type")) != "whisper":
        remedy = "; of an export, give the model that it was made of" if found is None else ""
        raise ModelError(f"model.name={name} is not a Whisper: the model_type in its config.json is {found}{remedy}")
    for key in ("quantization_config", "transformers_weights"):
        if key in config:
            raise ModelError(f"model.name={name}: config.json has {key}; give a plain Whisper in model.safetensors")


def check_tokenizer(
    name: str, tokenizer: WhisperTokenizer, config: WhisperConfig, generation: GenerationConfig | None
) -> None:
    """Raises ModelError unless the tokenizer belongs to the model.

    generation: of the model's generation_config.json, if it has one. transformers makes an empty tokenizer if there is
    no file of one, and nothing else compares the token ids in the files.
    """
    ids, remedy = tokenizer.get_vocab(), "copy tokenizer.json and tokenizer_config.json of the model it was made from"
    # Every byte has a token; a tokenizer_config.json alone gives control tokens only.
    if not ids.keys() >= {START, "<|notimestamps|>", *ByteLevel.alphabet()}:
        raise ModelError(
            f"model.name={name} has no tokenizer of a Whisper: tokenizer.json (or vocab.json and merges.txt) is "
            f"missing or of another model; {remedy}"
        )
    if getattr(generation, "is_multilingual", True) is False or config.vocab_size == ENGLISH_ONLY:
        raise ModelError(f"model.name={name} is English-only and has no language tokens; use the multilingual model")
    if (largest := max(ids.values())) >= config.vocab_size:
        raise ModelError(
            f"model.name={name}: the tokenizer has {largest + 1} tokens, but the model has embeddings for "
            f"{config.vocab_size}; call model.resize_token_embeddings(len(tokenizer)) in transformers and save the "
            f"model, or {remedy}"
        )
    stated = _stated_ids(config, generation)
    if wrong := [token for token, number in stated.items() if isinstance(number, int) and ids.get(token) != number]:
        token = wrong[0]
        raise ModelError(
            f"model.name={name} has files of different Whispers: {token} is {ids.get(token)} in the tokenizer, but "
            f"{stated[token]} by config.json and generation_config.json; copy tokenizer.json, tokenizer_config.json "
            "and generation_config.json of the model it was made from"
        )


def _stated_ids(config: WhisperConfig, generation: GenerationConfig | None) -> dict[str, Any]:
    """The ids of control tokens by the files of the model itself."""
    stated: dict[str, Any] = {END: config.eos_token_id, START: config.decoder_start_token_id}
    if generation is not None:
        stated["<|notimestamps|>"] = getattr(generation, "no_timestamps_token_id", None)
        stated |= {f"<|{task}|>": number for task, number in (getattr(generation, "task_to_id", None) or {}).items()}
        stated |= getattr(generation, "lang_to_id", None) or {}
    return stated
