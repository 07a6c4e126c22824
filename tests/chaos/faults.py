"""Faults inside a run, installed after the fork and before the command starts."""

import ctypes
import faulthandler
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The C functions that a save calls on its files.
ON_FILES = {
    "write",
    "write_record",
    "write_end_of_file",
    "flush",
    "fsync",
    "close",
    "open",
    "replace",
    "rename",
    "link",
}


def kill_at_step(step: int) -> None:
    """kill -9 at the start of a training step."""
    at_step(step, kill)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_step(step: int, then: Callable[[], Any]) -> None:
    from kikitori.training.lightning_module import WhisperModule

    inner = WhisperModule.training_step

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step + 1 == step:
            then()
        return inner(self, batch, batch_idx)

    WhisperModule.training_step = training_step  # type: ignore[method-assign]


def around_save(begin: Callable[[int], Any], end: Callable[[int, Any], Any]) -> None:
    """Call `begin(number)` and `end(number, trainer)` around each checkpoint that is saved, the first being 1."""
    import pytorch_lightning as pl

    inner, saves = pl.Trainer.save_checkpoint, [0]

    def save_checkpoint(self: Any, *arguments: Any, **how: Any) -> None:
        saves[0] += 1
        begin(saves[0])
        inner(self, *arguments, **how)
        end(saves[0], self)

    pl.Trainer.save_checkpoint = save_checkpoint  # type: ignore[method-assign]


def note_saves(path: str) -> None:
    """Append the step of each checkpoint that was saved completely."""
    around_save(lambda number: None, lambda number, trainer: append(path, str(trainer.global_step)))


def append(path: str, line: str) -> None:
    with open(path, "a") as file:
        file.write(f"{line}\n")


def kill_in_save(save: int, call: int, before: bool, count: str | None = None) -> None:
    """kill -9 during a save, before or after its `call`-th file operation. count: a file to write the operations to."""
    calls = [0]

    def profile(frame: Any, event: str, function: Any) -> None:
        if event not in ("c_call", "c_return") or getattr(function, "__name__", "") not in ON_FILES:
            return
        calls[0] += event == "c_call"
        if calls[0] == call and (event == "c_call") == before:
            kill()

    def begin(number: int) -> None:
        calls[0] = 0
        if number == save or count:
            sys.setprofile(profile)

    def end(number: int, trainer: Any) -> None:
        sys.setprofile(None)
        if count:
            append(count, str(calls[0]))

    around_save(begin, end)


def kill_after(save: int, microseconds: int) -> None:
    """kill -9 from another process, `microseconds` after the start of a save."""
    parent = os.getpid()
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(write)
        if os.read(read, 1):
            time.sleep(microseconds / 1e6)
            os.kill(parent, signal.SIGKILL)
        os._exit(0)
    os.close(read)
    around_save(lambda number: os.write(write, b"x") if number == save else None, lambda number, trainer: None)


def forget_random_states() -> None:
    from kikitori.training import history

    history.set_random_state = lambda state: None


def forget_position() -> None:
    from kikitori.data import sampler

    inner = sampler.StepSampler.__init__

    def start(self: Any, *arguments: Any, **how: Any) -> None:
        inner(self, *arguments, **how)
        self.global_step = lambda: 0

    sampler.StepSampler.__init__ = start  # type: ignore[method-assign]


def forget_scheduler() -> None:
    from pytorch_lightning.trainer.connectors.checkpoint_connector import _CheckpointConnector

    _CheckpointConnector.restore_lr_schedulers = lambda self: None  # type: ignore[method-assign]


def note_phases(path: str) -> None:
    """Append a line at the start of each step of training, validation and scoring: its hook and the global step."""
    from kikitori.training.lightning_module import WhisperModule

    def note(name: str) -> None:
        inner = getattr(WhisperModule, name)

        def noted(self: Any, batch: Any, batch_idx: int) -> Any:
            append(path, f"{name} {self.trainer.global_step}")
            return inner(self, batch, batch_idx)

        setattr(WhisperModule, name, noted)

    for name in ("training_step", "validation_step", "predict_step"):
        note(name)


def nan_at(step: int) -> None:
    """Make the losses of a training step NaN."""
    from kikitori.training import lightning_module

    inner, poisoned = lightning_module.clip_losses, [False]
    at_step(step, lambda: poisoned.__setitem__(0, True))
    lightning_module.clip_losses = lambda *arguments: inner(*arguments) * (float("nan") if poisoned[0] else 1)


def raise_at(step: int) -> None:
    def fail() -> None:
        raise RuntimeError("this process fails on purpose")

    at_step(step, fail)


def drop_root_permissions() -> None:
    """Subject this process to file permissions, which root bypasses."""
    libc, header = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0)
    capabilities = (ctypes.c_uint32 * 6)()
    libc.capget(header, capabilities)
    for field in range(3):  # effective, permitted, inheritable: without CAP_DAC_OVERRIDE
        capabilities[field] &= ~(1 << 1)
    if libc.capset(header, capabilities):
        raise OSError("this process cannot drop root's capabilities")


def make_read_only(folder: str, save: int) -> None:
    """Make a folder read-only at the start of a save."""
    around_save(lambda number: os.chmod(folder, 0o555) if number == save else None, lambda number, trainer: None)


def fill_disk(folder: str, save: int, leave: int) -> None:
    """Fill the disk of a folder at the start of a save, except for `leave` bytes."""

    def fill(number: int) -> None:
        if number == save:
            free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
            Path(folder, "filler").write_bytes(bytes(max(0, free - leave)))

    around_save(fill, lambda number, trainer: None)


def slow_training(seconds: float) -> None:
    """Slow down training steps."""
    from kikitori.training.lightning_module import WhisperModule

    inner = WhisperModule.training_step

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        time.sleep(seconds)
        return inner(self, batch, batch_idx)

    WhisperModule.training_step = training_step  # type: ignore[method-assign]


def other_ranks(faults: dict[str, Any]) -> None:
    """Install faults in the other processes of a multi-device run, by replacing the Python that starts them."""
    os.environ["KIKITORI_CHAOS_RANKS"] = json.dumps(faults)
    sys.executable = str(Path(__file__).with_name("rank.py"))


def show_threads() -> None:
    """Print the stack traces of a process at SIGUSR1, to debug one that does not end."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)


def no_network(path: str) -> None:
    """Make name look-ups and connections to other machines fail from the first step on, and log them."""
    gone: list[bool] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if not gone or event not in ("socket.connect", "socket.getaddrinfo"):
            return
        where = arguments[1] if event == "socket.connect" else arguments[0]
        local = event == "socket.connect" and isinstance(where, str | bytes)
        if not local:
            append(path, f"{event} {where}")
            raise OSError("no network, as this test wants")

    sys.addaudithook(watch)
    at_step(1, lambda: gone.append(True))
