"""Checkpoints on the disk: whole or not there, each with its checksum beside it, and none taken unread."""

import logging
from collections.abc import Collection
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import CheckpointIO

from kikitori.runtime.errors import DataError, TrainingError, one_line
from kikitori.runtime.files import atomic_write
from kikitori.runtime.signals import Stop
from kikitori.training.lightning_module import WhisperModule

log = logging.getLogger(__name__)

# torch would advise to read it without care.
NOT_ONE = "is damaged, or holds more than weights and plain values"


class CheckpointFiles(CheckpointIO):
    """Writes and reads the Trainer's checkpoints.

    `last.ckpt.sha256` names the contents that `last.ckpt` may have, in the form of `sha256sum`, the new ones before
    they get the name: so there is no moment at which a kill leaves a file without its checksum, or none at all.
    """

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
            # torch hands on what its writer raises as a RuntimeError of its own.
            reason = next((e for e in (error, error.__cause__, error.__context__) if isinstance(e, OSError)), error)
            raise TrainingError(
                f"the checkpoint {path} cannot be written: {one_line(reason)}; those that were there are "
                f"whole: mend that, and go on with kikitori train resume={path.parents[1]}"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        for state in checkpoint["callbacks"].values():
            if "dirpath" in state:
                _move(state, str(Path(path).parent))
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
        _beside(Path(path)).unlink(missing_ok=True)


def _move(state: dict[str, Any], folder: str) -> None:
    """Let ModelCheckpoint find its files where they are now: it forgets what is best in a folder that was moved."""
    before, state["dirpath"] = state["dirpath"], folder

    def moved(path: str) -> str:
        return str(Path(folder, Path(path).relative_to(before))) if path else path

    state["best_k_models"] = {moved(path): score for path, score in state["best_k_models"].items()}
    for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[key] = moved(state[key])


class _Hashing:
    """A file that is written from its start to its end, and its checksum with it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def latest_valid(folder: Path) -> Path | None:
    """The checkpoint of the most steps that is as it was written; None where there is none.

    By the step that it holds, not by a clock. One that is damaged is named and passed over.
    """
    steps: dict[Path, int] = {}
    for path in folder.glob("*.ckpt"):
        try:
            steps[path] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"]
        except Exception as error:  # whatever a damaged file makes torch raise
            log.warning("%s %s and is passed over (%s)", path, NOT_ONE, type(error).__name__)
    # Of one step, last.ckpt is the later.
    for path in sorted(steps, key=lambda path: (steps[path], path.name == "last.ckpt"), reverse=True):
        if not checksums(path):
            log.warning("%s has no checksum beside it and is passed over", path)
        elif not matches_checksum(path):
            log.warning("%s does not match its checksum and is passed over", path)
        else:
            return path
    if any(folder.glob("*.ckpt")):
        log.warning("%s holds no checkpoint to go on from: training begins anew", folder)
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's values, on the CPU. Raises DataError where it is damaged; nothing in it is ever executed."""
    if checksums(path) and not matches_checksum(path):
        raise DataError(f"{path} is damaged: it does not match {_beside(path).name}; take another checkpoint")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes torch raise
        raise DataError(f"{path} {NOT_ONE} ({type(error).__name__}); take another checkpoint") from error
    if not isinstance(checkpoint, dict):
        raise DataError(f"{path} holds no checkpoint, but a {type(checkpoint).__name__}; take another")
    return checkpoint


def matches_checksum(path: Path) -> bool:
    """Whether a checkpoint is what was once written under its name, to the byte."""
    with path.open("rb") as file:
        digest = sha256()
        while block := file.read(2**24):
            digest.update(block)
    return digest.hexdigest() in checksums(path)


def checksums(path: Path) -> list[str]:
    """What a checkpoint's contents may be; empty where it has no checksum."""
    try:
        return [line.split()[0] for line in _beside(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError):
        return []


def remove_stale(folder: Path, kept: Collection[Path]) -> None:
    """Remove what a killed run leaves: half-written files, checkpoints that are not kept, checksums without any."""
    known = {path.resolve() for path in kept}
    for path in folder.glob("*.ckpt"):
        # One without a checksum was put there by somebody else.
        if path.resolve() not in known and checksums(path):
            path.unlink()
    for partial in folder.glob(".*.partial"):
        partial.unlink()
    for beside in folder.glob("*.ckpt.sha256"):
        if not beside.with_suffix("").exists():
            beside.unlink()


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _write_checksums(path: Path, digests: list[str]) -> None:
    with atomic_write(_beside(path)) as file:
        file.write("".join(f"{digest}  {path.name}\n" for digest in digests).encode())


class SaveLastCheckpoint(pl.Callback):
    """Keeps last.ckpt, from which a run that was stopped goes on.

    It is written before the step after which is validated, rather than after it: a run that is stopped or killed while
    it validates takes that one step again, and then validates as if nothing had happened. So there is nothing to save
    but between two steps: then, when the run is told to stop, and after the last one.
    """

    def __init__(self, folder: Path, every_steps: int, stop: Stop) -> None:
        self.path = folder / "last.ckpt"
        self.every_steps = every_steps
        self.stop = stop
        self._saved = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # What a run goes on from need not be saved again.
        self._saved = trainer.global_step
        if trainer.is_global_zero:
            remove_stale(self.path.parent, {self.path, *_kept(trainer)})

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        is_told = self.stop.should_stop_at(step)
        if is_told or (step + 1) % self.every_steps == 0 or step + 1 == trainer.max_steps:
            self._save(trainer)
        if is_told:
            self.stop.raise_stopped()

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.stop.stop_requested():
            self.stop.raise_stopped()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # One that ended early has to find that out again.
        if trainer.global_step >= trainer.max_steps:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        if trainer.global_step > self._saved:
            # What was measured up to here is not measured again.
            for logger in trainer.loggers:
                logger.save()
            with self.stop.saving:
                trainer.save_checkpoint(self.path, weights_only=False)
            self._saved = trainer.global_step


def _kept(trainer: pl.Trainer) -> set[Path]:
    """The checkpoints that Lightning knows of: a run killed between two of its writes leaves one more."""
    paths: set[str] = set()
    for callback in trainer.checkpoint_callbacks:
        assert isinstance(callback, ModelCheckpoint)
        paths |= {*callback.best_k_models, callback.best_model_path, callback.last_model_path}
    return {Path(path) for path in paths if path}


def load_best_weights(trainer: pl.Trainer, module: WhisperModule) -> None:
    """Put the best checkpoint's weights into the module: what is scored and saved. The test split has no say in it."""
    path = best_checkpoint(trainer)["best"]
    if path:
        module.load_state_dict(read_checkpoint(Path(path))["state_dict"])


def best_checkpoint(trainer: pl.Trainer) -> dict[str, Any]:
    """The best checkpoint's file, what it is best by, and that value."""
    callback: Any = trainer.checkpoint_callback
    value = callback.best_model_score if callback else None
    return {
        "best": callback.best_model_path if callback else "",
        "monitor": callback.monitor if callback else None,
        "value": None if value is None else float(value),
    }


def rotate_metrics(folder: Path) -> None:
    """Move the table of a run that goes on out of the way: its logger would begin it anew."""
    if (path := folder / "metrics.csv").exists():
        path.rename(folder / f"metrics-{len(list(folder.glob('metrics-*.csv')))}.csv")
