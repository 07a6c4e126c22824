"""Checkpoints: written atomically with a checksum, and verified before use."""

import logging
import math
import os
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LambdaCallback, ModelCheckpoint
from pytorch_lightning.plugins.io import CheckpointIO
from pytorch_lightning.utilities import rank_zero_only

from kikitori.optim.average import AVERAGE
from kikitori.runtime.errors import DataError, KikitoriError, TrainingError, one_line, remedy_of
from kikitori.runtime.files import (
    OBJECT,
    atomic_write,
    check_extent,
    is_regular,
    open_regular,
    parse,
    read_text,
    sync_folder,
)
from kikitori.runtime.signals import Stop
from kikitori.training.history import TrainingHistory

log = logging.getLogger(__name__)

# Instead of torch's own message, which advises to load the file without this restriction.
NOT_PLAIN = "is damaged, or holds more than weights and plain values"
# torch's message for weights of other names or shapes.
OTHER_MODEL = "Error(s) in loading state_dict"


def _are_weights(value: Any) -> bool:
    return isinstance(value, dict) and all(map(torch.is_tensor, value.values()))


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


# What is read of a checkpoint by its name, and of ModelCheckpoint's state, as kinds for `parse`.
CHECKPOINT = {
    "global_step": _is_count,
    "state_dict": _are_weights,
    "optimizer_states": [OBJECT],
    "callbacks": {str: OBJECT},
    AVERAGE: {"updates!": _is_count, "raw_weights!": _are_weights},
    "hyper_parameters": OBJECT,
}
PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")
KEPT = {**{f"{key}!": str for key in PATHS}, "best_k_models!": OBJECT}


class CheckpointFiles(CheckpointIO):
    """Writes and reads the Trainer's checkpoints.

    `last.ckpt.sha256` lists the checksums that `last.ckpt` may have, in the format of `sha256sum`. A new checkpoint's
    is added before the file is renamed, so a kill at any moment leaves a file whose checksum is listed.

    validation: the digest of the clips that this run validates on. Scores on other clips are forgotten when a
    checkpoint is read. accepts_data: whether a checkpoint of an earlier version, without a digest, may have any.
    """

    def __init__(self, validation: str = "", accepts_data: bool = False) -> None:
        self.validation = validation
        self.accepts_data = accepts_data

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                hashing = _Hashing(file)
                torch.save(checkpoint, cast(Any, hashing))
                digest = hashing.digest.hexdigest()
                _write_checksums(path, [digest, *checksums(path)])
            _write_checksums(path, [digest])
        except (OSError, RuntimeError) as error:
            # torch turns the writer's exception into a RuntimeError.
            reason = next((e for e in (error, error.__cause__, error.__context__) if isinstance(e, OSError)), error)
            raise TrainingError(
                f"the checkpoint {path} cannot be written: {one_line(reason)}; earlier checkpoints are intact: fix the "
                f"cause, then resume with kikitori train resume={path.parents[1]}"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint = read_checkpoint(Path(path), verify=False, mmap=False)
        recorded = checkpoint["callbacks"].get(TrainingHistory.state_key, {}).get("validation")
        if self.accepts_data if recorded is None else recorded != self.validation:
            rank_zero_only(log.warning)("validation clips have changed: earlier scores do not choose the best one")
            _forget_scores(checkpoint["callbacks"])
        states = {key: _in_folder(state, Path(path).parent) for key, state in checkpoint["callbacks"].items()}
        return {**checkpoint, "callbacks": {key: state for key, state in states.items() if state is not None}}

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
        _checksum_file(Path(path)).unlink(missing_ok=True)


def _forget_scores(states: dict[str, Any]) -> None:
    """Removes validation scores from the callbacks' states: from the history, the best checkpoint, early stopping."""
    for key, state in list(states.items()):
        if key == TrainingHistory.state_key:
            rows = state["history"]
            state["history"] = [{k: v for k, v in row.items() if not k.startswith("val/")} for row in rows]
        elif "best_model_score" in state or "best_score" in state:
            del states[key]


def _in_folder(state: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """A callback's state, in which ModelCheckpoint's paths are files of this folder: the run's may have been moved.

    Lightning deletes files that it finds there, so only their names count. None if the best checkpoint is missing.
    """
    if "dirpath" not in state:
        return state
    state = parse(state, KEPT, "ModelCheckpoint's state")

    def here(path: str) -> str:
        file = folder / Path(path).name
        return str(file) if file.suffix == ".ckpt" and is_regular(file) else ""

    paths = {key: here(state[key]) for key in PATHS}
    if state["best_model_path"] and not paths["best_model_path"]:
        return None
    best = {here(path): score for path, score in state["best_k_models"].items() if here(path)}
    return {**state, **paths, "dirpath": str(folder), "best_k_models": best}


class _Hashing:
    """A file, written from start to end, whose checksum is computed on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def latest_valid(folder: Path) -> Path | None:
    """The intact checkpoint with the most steps, or None.

    Counts the steps stored in the files, not their times. A damaged one is skipped with a warning, one that holds
    only weights without.
    """
    steps: dict[Path, int] = {}
    for path in folder.glob("*.ckpt"):
        try:
            checkpoint = read_checkpoint(path, verify=False)
        except DataError as error:
            log.warning("%s; it is skipped", error)
            continue
        if {"optimizer_states", "global_step"} <= checkpoint.keys():
            steps[path] = checkpoint["global_step"]
    # For the same step, last.ckpt is the later one.
    for path in sorted(steps, key=lambda path: (steps[path], path.name == "last.ckpt"), reverse=True):
        if not checksums(path):
            log.warning("%s has no checksum file and is skipped", path)
        elif not matches_checksum(path):
            log.warning("%s does not match its checksum and is skipped", path)
        else:
            return path
    if any(folder.glob("*.ckpt")):
        log.warning("no usable checkpoint in %s: training starts from step 0", folder)
    return None


@contextmanager
def resumed(trainer: pl.Trainer, path: Path | None) -> Iterator[None]:
    """Names the checkpoint in an error that ends a training before its first step.

    Its states of optimizer, schedule and callbacks are checked by nobody but their owners, each with errors of its own.
    """
    steps: list[Any] = []
    trainer.callbacks.append(LambdaCallback(on_train_batch_end=lambda *_: steps.append(1)))  # type: ignore[attr-defined]
    try:
        yield
    except Exception as error:
        if path is None or steps or isinstance(error, KikitoriError) or remedy_of(error):
            raise
        log.debug("traceback:", exc_info=True)
        reason, *mismatches = (f"{type(error).__name__}: {one_line(error)}", *str(error).splitlines()[1:])
        remedy = "if this checkpoint is damaged, delete it and resume again, from an earlier one"
        if mismatches and OTHER_MODEL in reason:
            reason = f"its weights are of another model: {mismatches[0].strip()}"
            remedy = f"resume with the settings of model and adapter that it was trained with; {remedy}"
        raise TrainingError(f"training does not continue from {path}: {reason}; {remedy}") from error


def saved_step(path: Path) -> int:
    """The step after which a checkpoint was written."""
    step: int = read_checkpoint(path, verify=False)["global_step"]
    return step


def read_checkpoint(path: Path, verify: bool = True, mmap: bool = True) -> dict[str, Any]:
    """A checkpoint's weights and plain values, on the CPU; nothing in it is ever executed.

    verify: whether to compute its checksum. mmap: whether tensors are read from the file when they are used.
    Raises DataError if it is damaged, or holds anything else or more than its file.
    """
    if verify and checksums(path) and not matches_checksum(path):
        raise DataError(f"{path} is damaged: it does not match {_checksum_file(path).name}; use another checkpoint")
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as entries:
            # torch stores them as they are. Compressed, or named several times, they could fill the memory.
            sizes = [math.inf if entry.compress_type else entry.file_size for entry in entries.infolist()]
            if sum(sizes) > path.stat().st_size:
                raise ValueError("its parts are larger than the file")
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        check_extent(values)
        # Tied weights share their memory, and are two tensors. One may also claim any shape over a single number.
        if _bytes_of_tensors(values) > 2 * path.stat().st_size:
            raise ValueError("its tensors are larger than the file")
        return parse(values, CHECKPOINT, "the checkpoint")
    except Exception as error:  # torch raises many kinds for a damaged or hostile file
        reason = error if isinstance(error, ValueError) else type(error).__name__
        raise DataError(f"{path} {NOT_PLAIN} ({reason}); use another checkpoint") from error


def _bytes_of_tensors(value: Any) -> int:
    """Returns what the tensors among plain values take if each is copied."""
    if torch.is_tensor(value):
        return math.prod(value.shape) * value.element_size()
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(_bytes_of_tensors, items))


def matches_checksum(path: Path) -> bool:
    """Whether a checkpoint's bytes are those that were written under its name."""
    with open_regular(path) as file:
        digest = sha256()
        while block := file.read(2**24):
            digest.update(block)
    return digest.hexdigest() in checksums(path)


def checksums(path: Path) -> list[str]:
    """The checksums that a checkpoint may have; empty without a checksum file."""
    try:
        return [line.split()[0] for line in read_text(_checksum_file(path)).splitlines() if line.strip()]
    except (OSError, ValueError):
        return []


def remove_stale(folder: Path, kept: Collection[Path]) -> None:
    """Removes what a killed run leaves: partial files, checkpoints not kept, checksums without a checkpoint."""
    known = {path.resolve() for path in kept}
    for path in folder.glob("*.ckpt"):
        # A checkpoint without a checksum was not written by this program.
        if path.resolve() not in known and checksums(path):
            path.unlink()
    for partial in folder.glob(".*.partial"):
        partial.unlink()
    for checksum_file in folder.glob("*.ckpt.sha256"):
        if not checksum_file.with_suffix("").exists():
            checksum_file.unlink()


def _checksum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _write_checksums(path: Path, digests: list[str]) -> None:
    with atomic_write(_checksum_file(path)) as file:
        file.write("".join(f"{digest}  {path.name}\n" for digest in digests).encode())


class SaveLastCheckpoint(pl.Callback):
    """Writes last.ckpt, from which an interrupted run resumes.

    It is written before the step that precedes a validation, not after it: a run that is interrupted during the
    validation repeats that one step and then validates normally. So checkpoints are written only between two steps:
    before a validation's step, when the run is stopped by a signal, and after the last step.
    """

    def __init__(self, folder: Path, every_steps: int, stop: Stop) -> None:
        self.path = folder / "last.ckpt"
        self.every_steps = every_steps
        self.stop = stop
        self._saved = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The checkpoint that a run resumes from need not be written again.
        self._saved = trainer.global_step
        if trainer.is_global_zero:
            remove_stale(self.path.parent, {self.path, *_kept(trainer)})

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        stopping = self.stop.should_stop_at(step)
        if stopping or (step + 1) % self.every_steps == 0 or step + 1 == trainer.max_steps:
            self._save(trainer)
        if stopping:
            self.stop.raise_stopped()

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.stop.stop_requested():
            self.stop.raise_stopped()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A run that ended early must end the same way when it is resumed.
        if trainer.global_step >= trainer.max_steps:
            # Up to here, two files of one step would each replace the other if that is damaged.
            has_linked = trainer.is_global_zero and link_to_equal(self.path, _kept(trainer), trainer.global_step)
            if not trainer.strategy.broadcast(has_linked):
                self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        if trainer.global_step > self._saved:
            # Steps up to here are not repeated, so their metrics must be on disk.
            for logger in trainer.loggers:
                logger.save()
            with self.stop.saving:
                trainer.save_checkpoint(self.path, weights_only=False)
            self._saved = trainer.global_step


def link_to_equal(path: Path, others: Collection[Path], step: int) -> bool:
    """Makes `path` a second name of a complete checkpoint of this step, so that both take its disk space only once.

    Returns whether that was possible: there may be none, and some file systems have no hard links.
    """
    link = path.with_name(f".{path.name}.link.partial")
    for other in others:
        try:
            checkpoint = read_checkpoint(other, verify=False)
            if checkpoint["global_step"] == step and "optimizer_states" in checkpoint:
                link.unlink(missing_ok=True)
                os.link(other, link)
                _write_checksums(path, [*checksums(other), *checksums(path)])
                os.replace(link, path)
                sync_folder(path.parent)
                _write_checksums(path, checksums(other))
                return True
        except (OSError, DataError) as error:
            log.debug("%s is not linked to %s: %s", path, other, error)
        finally:
            link.unlink(missing_ok=True)
    return False


def _kept(trainer: pl.Trainer) -> set[Path]:
    """The checkpoints that Lightning keeps; a run killed between two of its writes leaves one more."""
    paths: set[str] = set()
    for callback in trainer.checkpoint_callbacks:
        assert isinstance(callback, ModelCheckpoint)
        paths |= {*callback.best_k_models, callback.best_model_path, callback.last_model_path}
    return {Path(path) for path in paths if path}


def load_best_weights(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Loads the weights of the best checkpoint, chosen on validation, never on test; they are scored and saved."""
    path = best_checkpoint(trainer)["best"]
    if path:
        # One process reads the whole file, to verify it.
        module.load_state_dict(read_checkpoint(Path(path), verify=trainer.is_global_zero)["state_dict"])


def best_checkpoint(trainer: pl.Trainer) -> dict[str, Any]:
    """The best checkpoint's file, the metric it was chosen by, and its value."""
    callback: Any = trainer.checkpoint_callback
    value = callback.best_model_score if callback else None
    return {
        "best": callback.best_model_path if callback else "",
        "monitor": callback.monitor if callback else None,
        "value": None if value is None else float(value),
    }


def check_best(trainer: pl.Trainer, history: list[dict[str, float]]) -> None:
    """Raises TrainingError unless the chosen checkpoint has the best score of all validations."""
    chosen = best_checkpoint(trainer)
    rows = [row for row in history if chosen["monitor"] in row]
    score = min((row[chosen["monitor"]] for row in rows), default=None)
    if score is not None and chosen["value"] != score:
        raise TrainingError(
            f"the best validation had a {chosen['monitor']} of {score}, but the chosen checkpoint "
            f"{chosen['best'] or '(none)'} has {chosen['value']}; it is not the best one, so it is not saved"
        )
