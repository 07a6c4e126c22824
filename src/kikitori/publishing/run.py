"""Finds the folder of a run that is pushed, and its record."""

from pathlib import Path

from kikitori.adapters.folder import is_adapter
from kikitori.model.source import model_folder
from kikitori.runs.results import Results, folder_of_run, read_results
from kikitori.runtime.errors import ConfigError
from kikitori.runtime.files import expanded


def folder_to_push(run: Path, adapter: bool = False) -> tuple[Path, Results]:
    """Returns the folder of a run's model, or of its adapter, and the record of the run.

    run: its folder, or that of its model. Raises ConfigError or ModelError if there is no completed run, or no model.
    """
    path = expanded(run)
    if not path.is_dir():
        raise ConfigError(f"{run} is no folder; give the folder of a completed run")
    folder = folder_of_run(path)
    if folder is None:
        raise ConfigError(
            f"{run} is no run: it has no results.json, from which the card takes the scores; give the folder of a run"
        )
    if path.resolve() not in (folder, folder / "model", folder / "adapter"):
        raise ConfigError(
            f"{run} is in a run, and neither its model nor its adapter, which are all that is pushed; upload it with "
            f"hf upload NAME {run}"
        )
    results = read_results(folder)
    if "scores" not in results or "model" not in results or results.get("command") not in ("train", "average"):
        raise ConfigError(f"{run} is a run of kikitori {results.get('command')} and made no model; give a training")
    if results.get("status") != "completed":
        raise ConfigError(
            f"{run} is {results.get('status')}, and only a completed run has a model with its scores; resume it with "
            f"kikitori {results['command']} resume={run}"
        )
    if results["config"].get("keep") == "scores":
        raise ConfigError(f"{run} kept its scores alone (keep=scores), so there is no model; train it with keep=model")
    if not adapter:
        return model_folder(folder, str(run)), results
    if not is_adapter(folder / "adapter"):
        raise ConfigError(f"--adapter: {run} has no folder adapter/, since it trained all weights; leave it out")
    return folder / "adapter", results
