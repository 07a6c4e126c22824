"""What a process may use, and how it is told to stop."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def cores() -> int:
    """The cores that this process may use, which in a container or a batch system are not the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def told_to_stop() -> Iterator[list[str]]:
    """Collects the name of a SIGINT or SIGTERM instead of dying of it, so that the trials can be stopped in order."""
    told: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield told
        return

    def note(number: int, _: Any) -> None:
        told.append(signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
