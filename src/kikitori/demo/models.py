"""The models on the page: the bases that runs recorded, and what was made of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kikitori.adapters.folder import is_adapter
from kikitori.engines.loading import load_to_read
from kikitori.model.source import pinned
from kikitori.model.whisper import Whisper
from kikitori.model.window import describe_window
from kikitori.references.pinning import local_path
from kikitori.runs.results import name_of_model
from kikitori.runtime.errors import KikitoriError, ModelError
from kikitori.runtime.files import expanded
from kikitori.steps.origin import base_of_run


@dataclass(frozen=True)
class ShownModel:
    """A model on the page. title: its name there, without the path to it. is_base: whether others were made of it.

    place: as it was given.
    """

    title: str
    place: str
    is_base: bool
    whisper: Whisper

    def as_plain(self) -> dict[str, Any]:
        """What the page shows of it."""
        processor = self.whisper.processor
        return {
            "title": self.title,
            "is_base": self.is_base,
            "language": processor.language,
            "text_language": processor.text_language,
            "task": processor.task,
            "parameters": self.whisper.num_parameters,
            "window": describe_window(processor.window),
            "window_s": processor.window_s,
        }


def load_models(places: Sequence[str], base: str | None) -> tuple[list[ShownModel], list[str]]:
    """Loads the bases of runs and then the models of the runs, and returns them with sentences on what is missing.

    places: folders of runs, models or adapters, or names on the Hub. base: instead of those that the runs recorded.
    A recorded base that cannot be loaded is left out. Raises ModelError if another model cannot be loaded.
    """
    tuned = [_load(place, adapter_base=base) for place in dict.fromkeys(places)]
    first, notes = tuned[0].processor, list[str]()
    bases: dict[str, Whisper] = {}
    for wanted in [base] if base else _recorded(places, notes):
        try:
            bases[wanted] = _load(wanted, language=first.language, task=first.task)
        except KikitoriError as error:
            if base:
                raise ModelError(f"--base {error}") from error
            notes.append(f"the base is left out: {error}\n  Pass --base with a folder or a name on the Hub to show it")
    found = [*bases.values(), *tuned]
    names = [*bases, *dict.fromkeys(places)]
    shown = enumerate(zip(_titles(names), names, found, strict=True))
    return [ShownModel(title, name, i < len(bases), whisper) for i, (title, name, whisper) in shown], notes


def _recorded(places: Sequence[str], notes: list[str]) -> list[str]:
    """The bases that runs recorded, once each; adds to the notes where one has none."""
    found: dict[str, None] = {}
    for place in places:
        try:
            if recorded := base_of_run(place):
                found[recorded] = None
        except KikitoriError as error:
            notes.append(f"the base of {place} is unknown: {error}")
    if not found and len(places) == 1:
        notes.append(f"{places[0]} names no base, so it is shown alone; --base adds a model to compare it with")
    return list(found)


def _load(place: str, adapter_base: str | None = None, **arguments: Any) -> Whisper:
    """Loads a model. adapter_base: the base of a model that is an adapter."""
    try:
        if adapter_base and is_adapter(local_path(pinned(place, None)[0])):
            arguments["base"] = adapter_base
        return load_to_read(place, **arguments)
    except ModelError as error:
        raise ModelError(str(error).replace("model.name=", "").replace("model.base", "--base")) from error


def _titles(places: Sequence[str]) -> list[str]:
    """The last part of each name that says something, or all of it where two would be equal."""
    names = [name_of_model(expanded(place)) if expanded(place).is_dir() else place for place in places]
    return [name if names.count(name) == 1 else place for name, place in zip(names, places, strict=True)]
