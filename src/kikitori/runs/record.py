"""A run's folder and its results.json: begun, kept while it goes, and ended whatever happens."""

import errno
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import torch
from omegaconf import DictConfig

from kikitori.config.overrides import options, overrides, to_plain
from kikitori.config.validation import check_config
from kikitori.runs.provenance import git_state, versions
from kikitori.runs.results import FINISHED, Results
from kikitori.runs.resume import _refuse_changes, changes
from kikitori.runs.summary import markdown, print_results
from kikitori.runs.wandb_logger import finish_run
from kikitori.runtime.console import quiet_libraries
from kikitori.runtime.distributed import is_main
from kikitori.runtime.errors import ConfigError, Pruned, Stopped, TrainingError
from kikitori.runtime.files import read_json, write_json
from kikitori.runtime.processes import folder_lock

log = logging.getLogger(__name__)

OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)


@contextmanager
def record(command: str, cfg: DictConfig, folder: Path) -> Iterator[Results]:
    """Check, begin results.json or go on with it, write it whatever happens, and print the table at a good end."""
    check_config(cfg)
    quiet_libraries()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if not is_main():
        yield {"scores": {}, "cost": {}}
        return
    with folder_lock(folder, "hydra.run.dir", ConfigError):
        yield from _recorded(command, cfg, folder)


def _recorded(command: str, cfg: DictConfig, folder: Path) -> Iterator[Results]:
    results = _begin(command, cfg, folder)
    save(results, folder)
    try:
        yield results
        results["status"] = "completed"
    except Pruned as reason:
        results |= {"status": "pruned", "error": reason.args[0]}
    except Stopped as error:
        results |= {"status": "failed", "error": str(error)}
        log.info("%s; kikitori %s resume=%s goes on", error, command, folder)
        raise
    except BaseException as error:
        results |= {"status": "failed", "error": _told(error)}
        if remedy := _remedy(error):
            raise TrainingError(f"{remedy}, and go on with kikitori {command} resume={folder}") from error
        raise
    finally:
        results["finished"] = _now()
        try:
            save(results, folder)
        except OSError as error:
            # What ended the run is to be told, not that this cannot be written down.
            log.error("%s cannot be written: %s", folder / "results.json", error.strerror)
        if where := finish_run(results["status"]):
            print(f"Weights & Biases: {where}")
    if results["status"] == "completed":
        (folder / "results.md").write_text(markdown(results), encoding="utf-8")
        print_results(results, folder)


def _begin(command: str, cfg: DictConfig, folder: Path) -> Results:
    """What results.json holds at first: of a run that goes on, its scores, costs and start."""
    path, resume = folder / "results.json", cfg.get("resume")
    earlier = read_json(path) if path.exists() else {}
    if earlier and not resume:
        raise ConfigError(f"hydra.run.dir={folder} already holds a run; choose another folder, or add resume=auto")
    if earlier.get("status") in FINISHED:
        raise ConfigError(f"hydra.run.dir={folder} holds a run that is {earlier['status']}: nothing is left to resume")
    if earlier:
        _refuse_changes(changes(earlier.get("config", {}), to_plain(cfg)), cfg, folder)
    # Enough to start it again. Hydra's own record of it is not written whole where a kill comes in between.
    line = {"overrides": overrides(), "options": options(command)}
    results: Results = {"status": "running", "command": command, **line}
    results |= {"started": earlier.get("started", _now()), "versions": versions(), "git": git_state()}
    return results | {"config": to_plain(cfg)} | {key: earlier.get(key, {}) for key in ("scores", "cost", "data")}


def fail(results: Results, folder: Path, reason: str) -> None:
    """Write the end of a run whose process is about to be ended."""
    results |= {"status": "failed", "error": reason, "finished": _now()}
    save(results, folder)


def save(results: Results, folder: Path) -> None:
    """Write results.json, by the process that does."""
    if is_main():
        write_json(folder / "results.json", results)


@contextmanager
def timed(results: Results, key: str) -> Iterator[None]:
    """Add the seconds that its block takes to the costs, whether or not it ends well."""
    start = time.perf_counter()
    try:
        yield
    finally:
        results["cost"][key] = results["cost"].get(key, 0.0) + time.perf_counter() - start


def _remedy(error: BaseException) -> str | None:
    """What happened and what to do, where it is no fault of the run's."""
    if isinstance(error, OSError) and error.errno in OF_THE_DISK:
        return f"{error.filename or 'the disk'}: {error.strerror}; mend that"
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        cause = str(error).splitlines()[0]
        return f"{cause}; was it out of memory? Take fewer data.num_workers, or 0"
    return None


def _told(error: BaseException) -> str:
    """An error in one line of its kind and what it says; ours name their kind themselves."""
    name, text = type(error).__name__, str(error) or "stopped"
    return text if text.startswith(name) else f"{name}: {text}"


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
