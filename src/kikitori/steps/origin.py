"""Where a tuned model comes from: the corpus and the base of its run, for commands that are given only its folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from kikitori.config.overrides import key_of, overrides, to_plain
from kikitori.config.targets import TARGET
from kikitori.references.names import is_reference
from kikitori.runs.results import folder_of_run, read_results
from kikitori.runtime.errors import ConfigError
from kikitori.runtime.files import expanded


def base_of_run(place: Path) -> str | None:
    """The base of the run that a folder, its model's folder or a checkpoint belongs to: a folder or a name on the Hub,
    as the run found it, wherever a branch or an alias points now.

    None if it belongs to no run, or to one that began with random weights. Raises DataError for a damaged run.
    """
    folder = folder_of_run(place)
    run = read_results(folder) if folder else {}
    config, start = run.get("config", {}), Path(run.get("cwd", "."))
    model = config.get("model", {})
    # Of a training, or of an average.
    base, revision = model.get("name") or config.get("against"), model.get("revision")
    if base and revision:
        base = f"{'' if is_reference(base) else 'hub:'}{base}@{revision}"
    return run.get("references", {}).get(base) or (_from(start, base) if base else None)


def with_origin(cfg: DictConfig | Mapping[str, Any], place: str) -> dict[str, Any]:
    """The configuration, in which `data` and `against` are those of a model's run where none is chosen.

    place: the model. Raises ConfigError for one that belongs to no run, or began with random weights.
    """
    values: Any = to_plain(cfg) if isinstance(cfg, DictConfig) else dict(cfg)
    folder = folder_of_run(Path(place))
    run = read_results(folder) if folder else {}
    config, start = run.get("config", {}), Path(run.get("cwd", "."))
    if TARGET not in values["data"]:
        if typed := [word for word in overrides() if key_of(word).startswith("data.")]:
            choices = "data=common_voice, manifest, hub or demo"
            raise ConfigError(f"{typed[0]}: belongs to a corpus; choose it as well: {choices}")
        if TARGET not in config.get("data", {}):
            raise ConfigError(f"data: not chosen, and {place} is no run that would name its corpus; pass data=...")
        # Folders outside of the corpus are typed, never read from a file; the cache is of one frozen encoder.
        values["data"] = {**config["data"], "roots": None, "cache_encoder_outputs": False}
        for key in ("release", "manifest", "name"):
            if key in values["data"]:
                values["data"][key] = _from(start, values["data"][key])
    base = base_of_run(Path(place))
    if not values["against"] and not base:
        random = str(config.get("model", {}).get(TARGET)).endswith("build_whisper")
        why = "began with random weights, so it has no base" if random else "does not name its base"
        raise ConfigError(f"against: not set, and {place} {why}; pass --against with a model")
    values["against"] = values["against"] or base
    return dict(values)


def _from(start: Path, value: Any) -> Any:
    """A path of a run, or several, absolute if it exists in the folder in which the run was started."""
    if isinstance(value, Mapping):
        return {key: _from(start, path) for key, path in value.items()}
    if isinstance(value, list):
        return [_from(start, path) for path in value]
    return str(start / value) if (start / expanded(value)).exists() else value
