"""Where a tuned model comes from: the corpus and the base of its run, for commands that are given only its folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from kikitori.config.overrides import key_of, overrides, to_plain
from kikitori.config.targets import TARGET
from kikitori.model.source import is_missing
from kikitori.references.names import is_reference
from kikitori.runs.results import Results, folder_of_run, read_results
from kikitori.runtime.errors import ConfigError
from kikitori.runtime.files import expanded


def base_of_run(place: str) -> str | None:
    """The base of the run that a folder, its model's folder or a checkpoint belongs to: a folder or a name on the Hub,
    as the run found it, wherever a branch or an alias points now.

    None if it belongs to no run, or to one that began with random weights. Raises DataError for a damaged run.
    """
    run = _run_of(place)
    config = run.get("config", {})
    model = config.get("model", {})
    # Of a training, or of an average.
    base, revision = model.get("name") or config.get("against"), model.get("revision")
    if base and revision:
        base = f"{'' if is_reference(base) else 'hub:'}{base}@{revision}"
    return run.get("references", {}).get(base) or (_from(run, base) if base else None)


def with_corpus(cfg: DictConfig | Mapping[str, Any], place: str) -> dict[str, Any]:
    """The configuration, in which `data` is that of a model's run where none is chosen.

    place: the model. Raises ConfigError for one that belongs to no run.
    """
    values: Any = to_plain(cfg) if isinstance(cfg, DictConfig) else dict(cfg)
    if TARGET in values["data"]:
        return dict(values)
    run = _run_of(place)
    found = run.get("config", {}).get("data", {})
    if typed := [word for word in overrides() if key_of(word).startswith("data.")]:
        choices = "data=common_voice, manifest, hub or demo"
        raise ConfigError(f"{typed[0]}: belongs to a corpus; choose it as well: {choices}")
    if not run and is_missing(place):
        raise ConfigError(f"checkpoint={place} does not exist; give the folder of a run or of a model")
    if TARGET not in found:
        raise ConfigError(f"data: not chosen, and {place} is no run that would name its corpus; pass data=...")
    # Folders outside of the corpus are typed, never read from a file; the cache is of one frozen encoder.
    values["data"] = {**found, "roots": None, "cache_encoder_outputs": False}
    for key in ("release", "manifest", "name"):
        if key in values["data"]:
            values["data"][key] = _from(run, values["data"][key])
    return dict(values)


def with_origin(cfg: DictConfig | Mapping[str, Any], place: str) -> dict[str, Any]:
    """The configuration, in which `data` and `against` are those of a model's run where none is chosen.

    place: the model. Raises ConfigError for one that belongs to no run, or began with random weights.
    """
    values = with_corpus(cfg, place)
    if values["against"]:
        return values
    values["against"] = base_of_run(place)
    if not values["against"]:
        builder = _run_of(place).get("config", {}).get("model", {}).get(TARGET)
        random = str(builder).endswith("build_whisper")
        why = "began with random weights, so it has no base" if random else "does not name its base"
        raise ConfigError(f"against: not set, and {place} {why}; pass --against with a model")
    return values


def _run_of(place: str) -> Results:
    """results.json of the run that a model belongs to; empty if there is none."""
    folder = folder_of_run(Path(place))
    return read_results(folder) if folder else {}


def _from(run: Results, value: Any) -> Any:
    """A path of a run, or several, absolute if it exists in the folder in which the run was started."""
    if isinstance(value, Mapping):
        return {key: _from(run, path) for key, path in value.items()}
    if isinstance(value, list):
        return [_from(run, path) for path in value]
    start = Path(run.get("cwd", "."))
    return str(start / value) if (start / expanded(value)).exists() else value
