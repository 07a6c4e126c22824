"""Process helpers: CPU count, folder locks, stop signals, and exiting with the parent process."""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from kikitori.runtime.errors import KikitoriError, Stopped
from kikitori.runtime.files import open_regular

# The environment variable that holds the id of the process that started this one.
PARENT = "KIKITORI_PARENT"
# The option of prctl that sets the signal which a process gets when the thread that started it ends (linux/prctl.h).
PR_SET_PDEATHSIG = 1
# Seconds between two checks of whether the parent process is alive, on systems without prctl.
POLL_S = 1.0
# Seconds within which a signal that comes again is an echo: `timeout` sends it to the process, then to its group.
ECHO_S = 1.0


def cores() -> int:
    """Returns the number of CPU cores that this process may use: in a container or batch job fewer than exist."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def return_free_memory() -> None:
    """Gives memory that was freed back to the system, where the C library is glibc.

    It keeps freed blocks of up to 32 MB for later, and between sections of a long recording they add up to 100 MB.
    """
    import ctypes  # here, since the command line imports this module and must start fast

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def folder_lock(folder: Path, name: str, refusal: type[KikitoriError]) -> Iterator[None]:
    """Locks a folder for this process. The lock is released when the process ends, however that happens.

    name: the folder as its user gave it, such as hydra.run.dir=outputs/a. Raises `refusal` if another process holds the
    lock.
    """
    from filelock import FileLock, Timeout  # here, since the command line imports this module and must start fast

    lock = FileLock(folder / ".lock")
    try:
        # A reader may look at the lock at this moment.
        lock.acquire(timeout=0.2)
    except Timeout as error:
        raise refusal(f"{name} is in use by another process; wait until it has ended") from error
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Returns whether a process holds the lock of a folder, as far as this machine can see."""
    import fcntl

    try:
        with open_regular(folder / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (OSError, ValueError):
        return False
    return False


class StopOnce:
    """Acts on the first stop signal only; one that comes again, and is no echo, ends the process at once."""

    def __init__(self) -> None:
        self.first: float | None = None

    def handle(self, number: int, _: Any) -> None:
        """Handles a signal. Raises Stopped for the first one."""
        if not self.is_repeated(number):
            raise Stopped(number)

    def is_repeated(self, number: int) -> bool:
        """Whether a signal came before. Does not return if that is longer ago than `timeout` takes to send it twice."""
        now = time.monotonic()
        if self.first is None:
            self.first = now
            return False
        if now - self.first > ECHO_S:
            os._exit(Stopped(number).code)
        return True


@contextmanager
def collect_stop_signals() -> Iterator[list[int]]:
    """Yields a list that collects the first SIGINT or SIGTERM, which then does not end this process.

    The caller checks the list and stops its child processes in order. Outside of the main thread the list stays empty.
    """
    numbers: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield numbers
        return

    stop = StopOnce()

    def collect(number: int, _: Any) -> None:
        if not stop.is_repeated(number):
            numbers.append(number)

    before = {number: signal.signal(number, collect) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield numbers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def kill_workers() -> None:
    """Kills data loader workers that an error left behind; they ignore SIGTERM, so Python would wait forever."""
    if not (workers := [child for child in multiprocessing.active_children() if child.daemon]):
        return
    # Torch's handler raises an error when a worker is killed.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in workers:
        worker.kill()


@cache
def kill_workers_at_exit() -> None:
    """Lets `kill_workers` run when Python exits, before it waits for its child processes."""
    atexit.register(kill_workers)


def exit_with_launcher() -> None:
    """Ends this process when the one that started it has ended, for trials and for further processes of a run.

    The environment variable KIKITORI_PARENT holds the parent's id. Without it nothing happens.
    """
    if parent := int(os.environ.pop(PARENT, 0)):
        _exit_with(parent)


def worker_start_method() -> str | None:
    """Returns how a DataLoader's workers are started: by a fork on Linux, elsewhere as Python does by default (None).

    Python 3.14's default on Linux is a fork server: its workers would be children of the server instead of the run,
    would import everything anew for each loader, and would outlive a run that is killed.
    """
    return "fork" if sys.platform == "linux" else None


def _let_threads_pass() -> None:
    """Waits, before a fork, until no thread of a library is just entering Python.

    Until Python 3.11.10 a child that is forked at such a moment inherits a lock that nobody releases, and hangs
    (github.com/python/cpython/issues/112275). gloo's threads enter Python to free tensors after an exchange.
    """
    time.sleep(0.001)
    sys._current_frames()  # takes the lock, so it waits for a thread that was interrupted while it held it


if sys.version_info < (3, 11, 10) and hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_let_threads_pass)


def exit_with_parent(run: int, worker: int) -> None:
    """Initialises worker number `worker` of a DataLoader: it ignores stop signals and exits with the process `run`.

    The run itself ends its workers when it stops, after the current step. torch's own check for a dead parent
    compares with the present parent, so a worker whose run was killed before the worker started would never exit.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _exit_with(run)


def _exit_with(parent: int) -> None:
    """Kills this process as soon as the process `parent`, which started it, has ended.

    Linux does that itself, however the parent ends. Elsewhere a thread polls.
    """
    if sys.platform == "linux":
        import ctypes  # here, since the command line imports this module and must start fast

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_poll, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it ended before the lines above
        os.kill(os.getpid(), signal.SIGKILL)


def _poll(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os.kill(os.getpid(), signal.SIGKILL)
