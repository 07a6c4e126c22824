"""Where a tuned model comes from: the corpus and the base of its run, for commands that are given only its folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from kikitori.config.overrides import key_of, overrides, to_plain
from kikitori.config.targets import TARGET
from kikitori.runs.results import Results, folder_of_run, read_results
from kikitori.runtime.errors import ConfigError
from kikitori.runtime.files import expanded


def with_corpus(cfg: DictConfig | Mapping[str, Any], place: str) -> dict[str, Any]:
    """The configuration, in which `data` is that of a model's run where none is chosen.

    place: the model. Raises ConfigError for one that belongs to no run.
    """
    values: Any = to_plain(cfg) if isinstance(cfg, DictConfig) else dict(cfg)
    run = _run_of(place)
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
    return dict(values)


def with_origin(cfg: DictConfig | Mapping[str, Any], place: str) -> dict[str, Any]:
    """The configuration, in which `data` and `against` are those of a model's run where none is chosen.

    place: the model. Raises ConfigError for one that belongs to no run, or began with random weights or a revision.
    """
    values, run = with_corpus(cfg, place), _run_of(place)
    config, start = run.get("config", {}), Path(run.get("cwd", "."))
    model = config.get("model", {})
    # Of a training, or of an average.
    base, revision = model.get("name") or config.get("against"), model.get("revision")
    if not values["against"] and not base:
        random = str(model.get(TARGET)).endswith("build_whisper")
        why = "began with random weights, so it has no base" if random else "does not name its base"
        raise ConfigError(f"against: not set, and {place} {why}; pass --against with a model")
    if not values["against"] and revision:
        raise ConfigError(
            f"against: not set, and {place} began with the revision {revision} of {base}, not with its main branch; "
            "pass --against with a folder of it (hf download --revision)"
        )
    values["against"] = values["against"] or _from(start, base)
    return values


def _run_of(place: str) -> Results:
    """results.json of the run that a model belongs to; empty if there is none."""
    folder = folder_of_run(Path(place))
    return read_results(folder) if folder else {}


def _from(start: Path, value: Any) -> Any:
    """A path of a run, or several, absolute if it exists in the folder in which the run was started."""
    if isinstance(value, Mapping):
        return {key: _from(start, path) for key, path in value.items()}
    if isinstance(value, list):
        return [_from(start, path) for path in value]
    return str(start / value) if (start / expanded(value)).exists() else value
