"""A session: one run of a command, from its checked configuration to its finished results.json."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from kikitori.config.validation import check_config
from kikitori.model.source import decide_on_the_hub
from kikitori.references.names import is_reference
from kikitori.references.pinning import pin
from kikitori.runs.record import fail, finish, record
from kikitori.runs.results import Results, command_line, scored_precision
from kikitori.runs.summary import print_results
from kikitori.runs.wandb_logger import closing_wandb
from kikitori.runtime.console import quiet_libraries
from kikitori.runtime.distributed import run_on_all_devices
from kikitori.runtime.errors import ModelError
from kikitori.runtime.paths import shown_path
from kikitori.runtime.signals import Stop, handle_signals
from kikitori.training.trainer import check_batch_size, resolve_trainer_settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """What the steps of a pipeline share.

    config: the resolved configuration as plain values. folder: the run's folder. results: what results.json will hold.
    stop: the state of stop signals. trainer_settings: arguments of Lightning's Trainer, with `auto` resolved.
    """

    config: dict[str, Any]
    folder: Path
    results: Results
    stop: Stop
    trainer_settings: dict[str, Any]


@contextmanager
def session(command: str, cfg: DictConfig | dict[str, Any], folder: Path) -> Iterator[Session]:
    """Checks the configuration, starts results.json and the other devices' processes, and sets the seed.

    However the block ends, results.json, the W&B run and the other processes end with it.
    Raises ConfigError before anything is written if the configuration is wrong.
    """
    config = check_config(cfg)
    quiet_libraries()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    results: Results = {"scores": {}, "cost": {}}

    def on_forced_exit(reason: str) -> None:
        log.error(reason)
        if "status" in results:  # results.json exists
            fail(results, folder, reason)

    with handle_signals(on_forced_exit) as stop:
        with closing_wandb(results), record(results, command, config, folder):
            if "command" in results:  # in the main process only
                log.info("%s: %s", shown_path(folder), command_line(results))
            config = pin_references(config, results)
            settings = _trainer_settings(command, config)
            devices, nodes = settings["devices"], settings.get("num_nodes", 1)
            if devices * nodes > 1 and "name" in config["model"] and not config.get("checkpoint"):
                decide_on_the_hub(config["model"].get("base") or config["model"]["name"])
            with run_on_all_devices(command, config, folder, devices, nodes, on_forced_exit):
                pl.seed_everything(config["seed"], workers=True, verbose=False)
                results["precision"] = settings["precision"]
                _record_environment(results, settings)
                yield Session(config, folder, results, stop, settings)
        if results.get("status") == "completed":  # in the main process only
            finish(results, folder)
            print_results(results, folder)


def pin_references(config: dict[str, Any], results: Results) -> dict[str, Any]:
    """The configuration in which hub: and wandb: name a commit or a version, so that all processes load the same.

    What each stood for is recorded, and a resumed run uses that again. Raises ModelError if there is no such model.
    """
    known = dict(results.get("references", {}))

    def pinned(name: Any, key: str) -> Any:
        if isinstance(name, list):
            return [pinned(one, key) for one in name]
        if is_reference(name) and name not in known:
            try:
                known[name] = pin(name)
            except ModelError as error:
                raise ModelError(str(error).replace("model.name=", f"{key}=")) from error
            log.info("%s=%s is %s", key, name, known[name])
        return known.get(name, name) if is_reference(name) else name

    model = dict(config["model"])
    if is_reference(model.get("name")) and model.get("revision"):
        model |= {"name": f"{model['name']}@{model['revision']}", "revision": None}
    model |= {key: pinned(model[key], f"model.{key}") for key in ("name", "base") if key in model}
    others = {key: pinned(config[key], key) for key in ("checkpoint", "against", "runs") if key in config}
    if changed := {given: found for given, found in known.items() if given != found}:
        results["references"] = changed
    return config | others | {"model": model}


def _record_environment(results: Results, settings: dict[str, Any]) -> None:
    """Records what the last digits of the weights depend on, with a warning if it differs when a run is resumed."""
    cpu = torch.backends.cpu.get_cpu_capability()
    now = {"threads": torch.get_num_threads(), "deterministic": settings["deterministic"], "cpu": cpu}
    before = {**now, **results.get("environment", {})}
    if differing := [f"{key} was {before[key]} and is {now[key]} now" for key in now if before[key] != now[key]]:
        log.warning("%s: the weights will differ from an uninterrupted run's in the last digits", "; ".join(differing))
    results["environment"] = now


def _trainer_settings(command: str, config: dict[str, Any]) -> dict[str, Any]:
    """The Trainer's settings for this machine. A checkpoint is scored in the precision in which its run scored it."""
    settings, changes = resolve_trainer_settings(config["trainer"], torch.cuda.device_count())
    checkpoint, is_open = config.get("checkpoint"), config["trainer"]["precision"] == "auto"
    if checkpoint and is_open and (precision := scored_precision(Path(checkpoint), settings["accelerator"])):
        settings["precision"] = precision
        changes = [
            f"the {settings['accelerator'].upper()} and precision {precision}, in which its run scored the model"
        ]
    log.info("on this machine: %s", "; ".join(changes))
    if command == "train":
        check_batch_size(config["data"]["global_batch_size"], settings["devices"], settings.get("num_nodes", 1))
    return settings
