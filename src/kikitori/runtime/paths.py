"""Locations of the configuration tree, the demo corpus, the cache and the current run's folder, and whose they are."""

import os
import stat
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from hydra.core.hydra_config import HydraConfig

from kikitori.runtime.errors import ConfigError, DataError

HERE = Path(__file__).parents[1]
# A wheel has conf/ inside the package, a checkout has it at its top.
CONF = next(folder for folder in (HERE / "conf", HERE.parents[1] / "conf") if folder.is_dir())
DEMO = HERE / "corpora" / "demo" / "common-voice-ja"
# W&B links to the files of its last start, and writes into none of an earlier one.
WANDB = "wandb"
# Folders within each other in which runs are looked for, and in a run that is resumed.
DEEPEST = 32
# Each start of W&B has a new folder with a link to its log in W&B's own cache.
WANDB_CORE_LOG = f"{WANDB}/*run-*/logs/debug-core.log"


def cache_folder() -> Path:
    """Returns the folder named by KIKITORI_CACHE, by default ~/.cache/kikitori."""
    return Path(os.environ.get("KIKITORI_CACHE") or "~/.cache/kikitori").expanduser()


def private_folder(folder: Path) -> Path:
    """Creates a folder that only this user can read, or makes it one. Raises DataError if it is another user's."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_owner(folder)
    with suppress(PermissionError):  # exFAT: the mount decides
        folder.chmod(0o700)
    return folder


def check_owner(path: Path) -> None:
    """Raises DataError for a file or folder, or a link to one, that another user than this one or root has made.

    Whoever owns a file of a cache decides what is read from it. Raises OSError if there is none.
    """
    real = path.resolve()
    if {path.lstat().st_uid, path.stat().st_uid} - _owners(real if real.is_dir() else real.parent):
        raise DataError(
            f"{path} belongs to another user, who decides what it holds; set KIKITORI_CACHE to a folder of your own"
        )


def _owners(folder: Path) -> set[int]:
    """The users whose files in a folder are trusted: root, this one, and whoever gets what this one writes there.

    Some network file systems give all files one owner (NFS with all_squash, sshfs).
    """
    with suppress(OSError), TemporaryFile(dir=folder) as own:
        return {0, os.geteuid(), os.fstat(own.fileno()).st_uid}
    return {0, os.geteuid()}


def check_run_folder(folder: Path, key: str) -> None:
    """Raises ConfigError if writing a run or a sweep into an existing folder could change a file outside of it.

    So it may hold regular files and folders of this user alone, links that stay in it, and W&B's link to its log.
    Loggers, Lightning and transformers open files of the folder by their names. key: the configuration key that names
    the folder.
    """
    root = Path(os.path.realpath(folder))
    if not root.is_dir():
        return
    owners = _owners(root)
    for place, folders, files in os.walk(root):
        for name in (".", *folders, *files):
            path = Path(place, name)
            with suppress(FileNotFoundError):  # a run that goes on here has just removed it
                if fault := _fault(path, root, owners):
                    raise ConfigError(
                        f"{key}={folder}: {path.relative_to(root)} {fault}; to go on with a run of somebody else, copy "
                        "its folder with cp -rL"
                    )


def _fault(path: Path, root: Path, owners: set[int]) -> str:
    """Why nothing may be written where this path is; empty if there is no reason."""
    facts, parts = path.lstat(), path.relative_to(root).parts
    if facts.st_uid not in owners:
        return "belongs to another user"
    if len(parts) > DEEPEST:
        return f"lies below more than {DEEPEST} folders"
    of_wandb = WANDB in parts[:-1]
    if stat.S_ISLNK(facts.st_mode):
        stays = Path(os.path.realpath(path)).is_relative_to(root) and (of_wandb or path.exists())
        return "" if stays or path.relative_to(root).match(WANDB_CORE_LOG) else "is a link out of this folder"
    if stat.S_ISREG(facts.st_mode):
        # Two checkpoints of one step are one file. Checkpoints, also those that a kill left, are never written again.
        shared = facts.st_nlink > 1 and ".ckpt" not in path.suffixes and not of_wandb
        return "has a second name, perhaps outside of this folder" if shared else ""
    return "" if stat.S_ISDIR(facts.st_mode) else "is no regular file"


def run_folder() -> Path:
    """Returns the folder that Hydra created for this run."""
    return Path(HydraConfig.get().runtime.output_dir)


def shown_path(path: Path) -> str:
    """Returns a path as it is shown: relative to the working folder if it is below that."""
    there, here = Path(path).absolute(), Path.cwd()
    return str(there.relative_to(here)) if here in there.parents else str(path)
