"""Chooses what of a model's folder goes to the Hub: files of these names alone, and nothing of the machine.

A run's folder holds speech, transcripts, speakers and paths. So files are uploaded by their names, and those whose
content others wrote are read: keys that tell how and where a file was loaded are left out, and a path of this machine
or a secret is refused.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kikitori.adapters.folder import FACTS
from kikitori.runtime.errors import ConfigError, one_line
from kikitori.runtime.files import UNREADABLE, check_extent, is_regular, read_text
from kikitori.runtime.text import mask

CARD = "README.md"
WEIGHTS = re.compile(r"(model|adapter_model)(-\d{5}-of-\d{5})?\.safetensors")
# Files of a model and of an adapter, besides weights and card. Their content is checked.
CONFIGURATIONS = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "model.safetensors.index.json", "adapter_config.json", FACTS),
)
# Words, which look like anything and are those of the base.
VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "normalizer.json")
# Keys that say how and from where a file was loaded.
OF_THE_MACHINE = ("is_local", "local_files_only", "_name_or_path", "name_or_path", "_commit_hash")
# Whose value in adapter_config.json is the base, perhaps a folder.
BASE = "base_model_name_or_path"
ABSOLUTE = re.compile(r"/[\w.]|~\w*/|[A-Za-z]:[\\/]|\\\\|file:")
# Where the files of people lie, on whichever machine a text was written.
OF_PEOPLE = r"/(?:home|Users|root|mnt|media|scratch|data|srv|tmp)/\w"


class Selection(NamedTuple):
    """files: what is uploaded by name, a path or changed content. left_out: other names in the folder. notes: changes
    of what is uploaded, as sentences.
    """

    files: dict[str, Path | bytes]
    left_out: list[str]
    notes: list[str]


def select(folder: Path) -> Selection:
    """Chooses the files of a model's or an adapter's folder, without its card.

    Raises ConfigError for a link, and for a file that holds a path of this machine or a secret.
    """
    chosen = Selection({}, [], [])
    for path in sorted(folder.iterdir()):
        name = path.name
        if name == CARD:
            continue
        if WEIGHTS.fullmatch(name) or name in CONFIGURATIONS or name in VOCABULARY:
            if not is_regular(path):
                raise ConfigError(f"{path} is no regular file; replace it by a copy of the file")
            chosen.files[name] = path
        else:
            chosen.left_out.append(f"{name}/" if path.is_dir() else name)
        if name in CONFIGURATIONS:
            _check_configuration(path, chosen)
    return chosen


def _check_configuration(path: Path, chosen: Selection) -> None:
    """Replaces a configuration by one without keys of the machine. Raises ConfigError for other paths."""
    try:
        values = json.loads(read_text(path))  # of any number: tokenizer_config.json has one of 30 digits
        check_extent(values)
    except UNREADABLE as error:
        raise ConfigError(f"{path} cannot be read: {one_line(error)}; mend it, or take it from the base") from error
    removed = [key for key in OF_THE_MACHINE if isinstance(values, dict) and values.pop(key, None) is not None]
    if isinstance(values, dict) and _is_path(values.get(BASE)):
        removed.append(BASE)
        values[BASE] = None
    for place, text in _texts(values):
        if _is_path(text):
            raise ConfigError(f"{path}: {place} is a path of this machine, {text}; delete it from the file")
    check_text(json.dumps(values, ensure_ascii=False), path)
    if removed:
        chosen.files[path.name] = (json.dumps(values, ensure_ascii=False, indent=2) + "\n").encode()
        chosen.notes.append(f"{path.name} goes without {', '.join(removed)}")


def _texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """The texts in plain values, with where they are."""
    if isinstance(value, str):
        yield place, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _texts(item, f"{place}.{key}".lstrip("."))


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and ABSOLUTE.match(value) is not None


def check_text(text: str, path: Path, start: str = "") -> None:
    """Raises ConfigError for the text of a file that names a folder of a machine, or holds a secret.

    start: the folder in which the run was started.
    """
    if mask(text) != text:
        raise ConfigError(f"{path} holds a secret of the environment; delete it from the file")
    folder = path.parent
    own = {os.path.expanduser("~"), start, str(folder.absolute()), str(folder.resolve()), str(Path.cwd())}
    places = "|".join([OF_PEOPLE, *(rf"{re.escape(place)}(?![\w.-])" for place in own - {"", "/", "~"})])
    if found := re.search(rf"(?<![\w/.])(?:{places})[^\s\"'`<>)]*", text):
        raise ConfigError(f"{path} names {found[0]}, a path of this machine; delete it from the file")


def size_of(content: Path | bytes) -> int:
    """Bytes of a file, or of changed content."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size
