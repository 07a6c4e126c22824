"""`kikitori guard`: a tuned model next to its base on what its corpus does not show."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from kikitori.config.overrides import key_of, overrides, to_plain
from kikitori.config.targets import TARGET
from kikitori.model.processor import Processor
from kikitori.runs.results import Results, folder_of_run, read_results
from kikitori.runtime.errors import ConfigError, ModelError
from kikitori.steps.builders import build_data, configure_model, load_model, prepare_data
from kikitori.steps.guarding import BASE, TUNED, fail_if_worse, make_guard
from kikitori.steps.session import session
from kikitori.training.trainer import build_trainer, hardware_facts


def guard(cfg: DictConfig | dict[str, Any], folder: Path) -> Results:
    """Compares the model of `checkpoint` with that of `against`; all outputs are in `folder`."""
    with session("guard", complete(cfg), folder) as run:
        trainer = build_trainer(run.trainer_settings, folder, [], [])
        data = build_data(run.config, trainer)
        data.load_corpus()  # first, so that a missing corpus is found before a model is loaded
        tuned = load_model(run.config, "checkpoint")
        data = data.with_processor(tuned.processor)
        prepare_data(run.config, data, folder, run.results)
        configure_model(run, tuned)
        between = make_guard(run, trainer, data, tuned.processor)
        if between is None:
            raise ConfigError("guard.clips=0: there is nothing to compare; set it above 0")
        of_tuned = between.read(TUNED, tuned)
        own = {"language": tuned.processor.language, "task": tuned.processor.task}
        base = load_model({**run.config, "model": own}, "against")
        check_comparable(tuned.processor, base.processor)
        between.compare(between.read(BASE, base), of_tuned)
        run.results["cost"] |= hardware_facts(trainer)
    fail_if_worse(run)
    return run.results


def complete(cfg: DictConfig | dict[str, Any]) -> dict[str, Any]:
    """The configuration with the corpus and the base of the run, where none is chosen. Raises ConfigError without."""
    values: Any = to_plain(cfg) if isinstance(cfg, DictConfig) else dict(cfg)
    if not (place := values["checkpoint"]):
        raise ConfigError("checkpoint: not set; pass the tuned model: kikitori guard outputs/my-run")
    run, config = {}, {}
    if folder := folder_of_run(Path(place)):
        run = read_results(folder)
        config = run.get("config", {})
    start = Path(run.get("cwd", "."))
    if TARGET not in values["data"]:
        if typed := [word for word in overrides() if key_of(word).startswith("data.")]:
            raise ConfigError(
                f"{typed[0]}: belongs to a corpus; choose it as well: data=common_voice, manifest, hub, demo"
            )
        if TARGET not in config.get("data", {}):
            raise ConfigError(f"data: not chosen, and {place} is no run that would name its corpus; pass data=...")
        # Folders outside of the corpus are typed, never read from a file.
        recorded = {**config["data"], "roots": None}
        values["data"] = {key: from_folder(start, key, value) for key, value in recorded.items()}
    base = config.get("model", {}).get("name")
    if not values["against"] and not base:
        raise ConfigError(f"against: not set, and {place} does not name its base; pass --against with a model")
    values["against"] = values["against"] or from_folder(start, "name", base)
    return dict(values)


def from_folder(start: Path, key: str, value: Any) -> Any:
    """A path of a run, absolute if it exists relative to the folder in which the run was started."""
    is_path = key in ("release", "manifest", "name") and isinstance(value, str)
    return str(start / value) if is_path and (start / Path(value).expanduser()).exists() else value


def check_comparable(tuned: Processor, base: Processor) -> None:
    """Raises ModelError for models with other windows or vocabularies, which do not read the same recordings."""
    if (tuned.frames, len(tuned.tokenizer)) != (base.frames, len(base.tokenizer)):
        one, other = (f"a window of {p.window_s:g} s and {len(p.tokenizer)} tokens" for p in (tuned, base))
        raise ModelError(f"checkpoint has {one}, against {other}; give the model that was fine-tuned")
