"""The card of a model on the Hub: the one in its folder, with the metadata of the run and what the user stated."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kikitori.publishing.selection import CARD, check_text
from kikitori.runs.model_card import PLACE, card_text, front_matter, metadata
from kikitori.runs.results import RESULTS
from kikitori.runs.summary import plain_text
from kikitori.runtime.errors import ConfigError, one_line
from kikitori.runtime.files import check_extent, is_regular, read_text

# Bytes of a card.
MAX_CARD = 2**20


def card(
    folder: Path, results: Mapping[str, Any], name: str, license_id: str | None, data_license: str | None
) -> tuple[str, dict[str, Any]]:
    """Returns the card and its metadata. What was written into the folder's own card by hand is kept.

    name: on the Hub. license_id: of the model, data_license: of the corpus; None if it was not stated, and then the
    card says so. Raises ConfigError if the card in the folder cannot be read, or names a path of this machine.
    """
    own, text = _read(folder / CARD)
    try:
        found = metadata(results) | own
        text = text or card_text(results)
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # of another version, or of another program
        raise ConfigError(f"{folder.parent / RESULTS} lacks what the card needs: {one_line(error)}") from error
    if (folder / "adapter_config.json").is_file():
        found["library_name"] = "peft"
        if "base_model" in found:
            found["base_model_relation"] = "adapter"
    if license_id:
        found.pop("license", None)
        found = {"language": found.pop("language"), "license": license_id, **found}
    text = text.replace(PLACE, f"hub:{name}").rstrip("\n")
    text += f"\n\n{_licenses(found.get('license'), data_license)}\n"
    whole = front_matter(found) + text
    check_text(whole, folder / CARD, str(results.get("cwd", "")))
    return whole, found


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """The metadata and the text of a card; both empty if there is none."""
    if not path.exists():
        return {}, ""
    try:
        if not is_regular(path):
            raise ValueError("it is no regular file")
        # As editors of Windows write it, too.
        text = read_text(path, MAX_CARD).removeprefix("\ufeff").replace("\r\n", "\n")
        head = re.match(r"---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", text, re.DOTALL)
        values = yaml.safe_load(head[1]) if head else {}
        if not isinstance(values, dict):
            raise ValueError("its metadata is no mapping")
        check_extent(values)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{path} cannot be read: {reason}; mend its first lines, between ---, or delete it"
        ) from error
    return values, text[head.end() :] if head else text


def _licenses(license_id: Any, data_license: str | None) -> str:
    """What was stated of licences, as a paragraph."""
    model = f"{plain_text(str(license_id))}" if license_id else "not stated by who uploaded it"
    data = f"{plain_text(data_license)}" if data_license else "not stated by who uploaded it"
    return f"**Licences.** Of the model: {model}. Of the speech that it was trained on: {data}."
