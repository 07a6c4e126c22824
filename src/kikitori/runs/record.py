"""Writes results.json when a run starts, while it runs, and when it ends or fails, with the code that produced it."""

import logging
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kikitori.config.overrides import key_of, options, overrides, start_folder
from kikitori.runs.results import (
    FINISHED,
    RESULTS,
    RESULTS_TABLE,
    WANDB_RUN_ID,
    Results,
    ended_before_scoring,
    read_results,
)
from kikitori.runs.results_md import markdown
from kikitori.runs.resume import START_KEYS, changes, check_extension, refuse_changes, typed_again
from kikitori.runtime.distributed import is_main
from kikitori.runtime.errors import (
    ConfigError,
    OutOfMemory,
    Pruned,
    Stopped,
    TrainingError,
    describe_error,
    is_out_of_memory,
    remedy_of,
)
from kikitori.runtime.files import write_json, write_text
from kikitori.runtime.paths import HERE, shown_path
from kikitori.runtime.processes import folder_lock

log = logging.getLogger(__name__)

PACKAGES = (
    *("kikitori", "torch", "torchaudio", "transformers", "pytorch-lightning", "hydra-core", "datasets", "jiwer"),
    *("sudachipy", "sudachidict-core", "soundfile", "wandb"),
)
# Folders that a completed run does not keep, by the configuration's `keep`.
DROPPED: dict[str, tuple[str, ...]] = {
    "all": (),
    "model": ("checkpoints",),
    "scores": ("checkpoints", "model", "adapter"),
}


@contextmanager
def record(results: Results, command: str, config: dict[str, Any], folder: Path) -> Iterator[None]:
    """Keeps results.json of a new or resumed run, however the block ends.

    results: filled in place. config: the resolved configuration. In processes other than the main one nothing is
    written. Raises ConfigError if the folder holds another run, or is in use by another process.
    """
    if not is_main():
        yield
        return
    with folder_lock(folder, f"hydra.run.dir={folder}", ConfigError):
        earlier = read_results(folder) if (folder / RESULTS).exists() else {}
        results |= _start(command, config, folder, deepcopy(earlier))
        save(results, folder)
        try:
            yield
            results["status"] = "completed"
        except Pruned as reason:
            results |= {"status": "pruned", "error": reason.args[0]}
        except Stopped as error:
            results |= {"status": "failed", "error": str(error)}
            again = [f"resume={shown_path(folder)}", *typed_again(results["overrides"])]
            log.info("%s; to resume: %s", error, shlex.join(["kikitori", command, *again]))
            raise
        except BaseException as error:
            kind = OutOfMemory if is_out_of_memory(error) else type(error)
            results |= {"status": "failed", "error": describe_error(error), "error_type": kind.__name__}
            if remedy := remedy_of(error):
                raise TrainingError(f"{remedy}, then resume with kikitori {command} resume={folder}") from error
            raise
        finally:
            results["finished"] = _now()
            # A completed run that was to be trained further stays completed if that failed before the first step.
            keeps_earlier = earlier.get("status") in FINISHED and "history" not in results
            try:
                save(earlier if keeps_earlier else results, folder)
            except OSError as error:
                # The error that ended the run must reach the user, not this one.
                log.error("%s cannot be written: %s", folder / RESULTS, error.strerror)


def _start(command: str, config: dict[str, Any], folder: Path, earlier: Results) -> Results:
    """The first contents of results.json; a resumed run keeps its scores, costs and start time."""
    if earlier and not config.get("resume") and ended_before_scoring(folder):
        # A run that failed over a wrong path, for example, is replaced; its W&B run is not continued.
        earlier = {}
        (folder / WANDB_RUN_ID).unlink(missing_ok=True)
    if earlier and not config.get("resume"):
        raise ConfigError(f"hydra.run.dir={folder} already holds a run; choose another folder, or add resume=auto")
    kept: Results = {key: earlier[key] for key in ("extended_from", "references") if key in earlier}
    if earlier.get("status") in FINISHED:
        kept |= {"extended_from": check_extension(earlier, config, folder)}
    line = [word for word in overrides() if key_of(word) not in START_KEYS]
    if earlier:
        found = changes(earlier.get("config", {}), config, map(key_of, line))
        refuse_changes(found, config.get("resume_accept") or [], folder)
    # Enough to start the run again: Hydra's own record in .hydra may be cut off by a kill.
    start = {"overrides": line, "options": options(command), "cwd": earlier.get("cwd", start_folder())}
    results: Results = {"status": "running", "command": command, **start, **kept}
    results |= {"started": earlier.get("started", _now()), "versions": versions(), "git": git_state()}
    if earlier:
        # A run that was killed could not record its end.
        ends = {"failed": earlier.get("error"), "completed": "completed, to be trained further"}
        pause = {"reason": ends.get(str(earlier.get("status"))) or "killed", "resumed": _now()}
        results["interruptions"] = [*earlier.get("interruptions", []), pause]
    parts = ("scores", "scored", "cost", "data", "environment")
    return results | {"config": config} | {key: earlier.get(key, {}) for key in parts}


def fail(results: Results, folder: Path, reason: str) -> None:
    """Records the end of a run whose process is about to be killed."""
    results |= {"status": "failed", "error": reason, "finished": _now()}
    save(results, folder)


def save(results: Results, folder: Path) -> None:
    """Writes results.json, in the main process."""
    if is_main():
        write_json(folder / RESULTS, results)


def finish(results: Results, folder: Path) -> None:
    """Deletes from a completed run's folder what `keep` excludes, and writes its disk use and results.md."""
    for name in DROPPED[results["config"].get("keep", "all")]:
        shutil.rmtree(folder / name, ignore_errors=True)
    results["disk"] = disk_use(folder)
    save(results, folder)
    write_text(folder / RESULTS_TABLE, markdown(results, folder))


def disk_use(folder: Path) -> dict[str, int]:
    """Bytes of the files of a run, by folder; a file with two names counts once."""
    files = {(stat.st_dev, stat.st_ino): (path, stat) for path, stat in _files(folder)}
    sizes: dict[str, int] = {}
    for path, stat in files.values():
        parts = path.relative_to(folder).parts
        name = parts[0] if len(parts) > 1 and not parts[0].startswith(".") else "other"
        sizes[name] = sizes.get(name, 0) + stat.st_size
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield path, path.stat()


@contextmanager
def timed(results: Results, key: str) -> Iterator[Callable[[], None]]:
    """Adds the seconds of the block to the costs, even if it fails. Yields a function that adds those so far."""
    start, before = time.perf_counter(), results["cost"].get(key, 0.0)

    def add() -> None:
        results["cost"][key] = before + time.perf_counter() - start

    try:
        yield add
    finally:
        add()


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    return {name: version(name) for name in PACKAGES}


def git_state() -> dict[str, Any] | None:
    """The commit of the package's checkout, and whether src or conf differ from it; None elsewhere."""
    checkout = HERE.resolve().parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != checkout:
            return None  # installed inside another project's checkout
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", "src", "conf"))}
    except (OSError, subprocess.CalledProcessError):
        return None
