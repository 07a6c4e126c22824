"""What a process may use, how it keeps others out, how it is told to stop, and that it ends with the one it serves."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kikitori.runtime.errors import KikitoriError

# prctl's order for the signal that a process gets when the thread that started it is gone (linux/prctl.h).
PR_SET_PDEATHSIG = 1


def cores() -> int:
    """The cores that this process may use, which in a container or a batch system are not the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def folder_lock(folder: Path, key: str, refusal: type[KikitoriError]) -> Iterator[None]:
    """Keep every other process out of a folder, until this one is gone, however that ends.

    key: the configuration's that names it. Raises the refusal where another process is in it already.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise refusal(f"{key}={folder} is being run by another process; wait for it") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def collect_stop_signals() -> Iterator[list[int]]:
    """Collects the number of a SIGINT or SIGTERM instead of dying of it, so that the trials can be stopped in order."""
    told: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield told
        return

    def note(number: int, _: Any) -> None:
        told.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_with_parent(run: int, worker: int) -> None:
    """Let a loader's worker live as long as the run, by its process id: on, where all are told to stop, no longer."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        # A run that is killed outright ends nothing, and torch's watch takes whoever is the parent now for the run.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != run:
        os._exit(1)
