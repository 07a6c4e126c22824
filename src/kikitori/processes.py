"""What a process may use, how it keeps others out, and how it is told to stop."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kikitori.errors import KikitoriError


def cores() -> int:
    """The cores that this process may use, which in a container or a batch system are not the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def held(folder: Path, key: str, refusal: type[KikitoriError]) -> Iterator[None]:
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
def told_to_stop() -> Iterator[list[int]]:
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
