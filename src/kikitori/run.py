"""A run's folder and its results.json: begun, kept while it goes, and ended whatever happens."""

import errno
import json
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from kikitori import trainer as trainers
from kikitori.config import check
from kikitori.errors import ConfigError, Pruned, Stopped, TrainingError
from kikitori.paths import options, overrides
from kikitori.processes import held
from kikitori.progress import shows_bars
from kikitori.report import git_state, markdown, print_results, read_json, versions, write_json
from kikitori.runs import flat
from kikitori.sweep import FINISHED
from kikitori.tracking import close

log = logging.getLogger(__name__)

Results = dict[str, Any]
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)
# What a run may be resumed with anew.
NOT_OF_THE_RECIPE = re.compile(
    r"resume|accept\b.*|sweep\b.*|logger\b.*|trainer\.strategy\b.*"
    r"|callbacks\.pruning\b.*|.*\.dirpath|data\.(num_workers|eval_batch_size|batch)"
)


def is_main() -> bool:
    """Whether this process is the one of its run that writes; a run on several devices has one a device."""
    return getattr(rank_zero_only, "rank", 0) == 0


@contextmanager
def record(command: str, cfg: DictConfig, folder: Path) -> Iterator[Results]:
    """Check, begin results.json or go on with it, write it whatever happens, and print the table at a good end."""
    check(cfg)
    quieten()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if not is_main():
        yield {"scores": {}, "cost": {}}
        return
    with held(folder, "hydra.run.dir", ConfigError):
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
        if where := close(results["status"]):
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
        _refuse_changes(changes(earlier.get("config", {}), plain(cfg)), cfg, folder)
    # Enough to start it again. Hydra's own record of it is not written whole where a kill comes in between.
    line = {"overrides": overrides(), "options": options(command)}
    results: Results = {"status": "running", "command": command, **line}
    results |= {"started": earlier.get("started", _now()), "versions": versions(), "git": git_state()}
    return results | {"config": plain(cfg)} | {key: earlier.get(key, {}) for key in ("scores", "cost", "data")}


def fail(results: Results, folder: Path, reason: str) -> None:
    """Write the end of a run whose process is about to be ended."""
    results |= {"status": "failed", "error": reason, "finished": _now()}
    save(results, folder)


def changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """Keys of the recipe in which two configurations differ, with the values; where things are written is none."""
    old, new = (dict(flat(json.loads(json.dumps(config)))) for config in (before, now))
    differing = [key for key in old | new if old.get(key) != new.get(key) and not NOT_OF_THE_RECIPE.fullmatch(key)]
    return {key: f"was {old.get(key)}, is now {new.get(key)}" for key in differing}


def check_data(results: Results, summary: dict[str, Any], cfg: DictConfig, folder: Path) -> None:
    """Raise ConfigError where a run that goes on finds other clips than it began with."""
    before = results.get("data", {}).get("splits", {})
    told = {}
    for split, facts in summary["splits"].items():
        if split in before and before[split]["digest"] != facts["digest"]:
            what = f"{before[split]['clips']} clips then, {facts['clips']} now"
            told[f"data ({split})"] = f"audio or transcripts have changed: {what}"
    _refuse_changes(told, cfg, folder)


def _refuse_changes(told: dict[str, str], cfg: DictConfig, folder: Path) -> None:
    accepted = tuple(cfg.get("accept") or [])
    refused = {key: how for key, how in told.items() if not any(re.match(rf"{re.escape(a)}\b", key) for a in accepted)}
    if refused:
        lines = "\n".join(f"  {key}: {how}" for key, how in refused.items())
        keys = ",".join(dict.fromkeys(key.partition(" ")[0] for key in refused))
        raise ConfigError(
            f"{folder} holds a run that is not this one; resume it as it was, or take the changes over with "
            f"'accept=[{keys}]'\n{lines}"
        )


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


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A node as plain values, interpolations resolved."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


def quieten() -> None:
    """Keep the libraries' hints about their own defaults, and their bars where nobody watches, out of the output."""
    transformers.logging.set_verbosity_error()
    if not shows_bars():
        transformers.utils.logging.disable_progress_bar()
    trainers.quieten()
    if not is_main():
        logging.disable(logging.INFO)


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
