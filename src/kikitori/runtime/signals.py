"""SIGTERM and SIGINT: a run saves at a step that all its processes agree on, and ends with 143 or 130.

In training a signal is only noted: the step that is being computed ends first. Elsewhere there is nothing to save, and
it ends the run at once. Under Slurm, SIGUSR1 and SIGUSR2 announce the end of a job's time: the run is saved, too, and
put back into the queue.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from kikitori.runtime.errors import Stopped

# How long a run may take to end by itself. Slurm and most others kill 30 s after they told.
GRACE_S = 25.0
# The key by which processes of a run tell each other the step after which they stop.
AGREED = "kikitori/stop"


class Stop:
    """Whether this run was told to stop, and by which signal."""

    def __init__(self) -> None:
        self.number: int | None = None
        # In training: whoever trains looks by itself, between steps.
        self.is_polled = False
        # Held while a checkpoint is written, which is never cut off.
        self.saving = threading.Lock()
        # What is still to be written down where the run has to be ended from outside of it.
        self.on_forced_exit: Callable[[str], None] = lambda reason: None

    def note(self, number: int, _: Any) -> None:
        """Handle a signal; a second one changes nothing."""
        if self.number is None:
            self.number = number
            if not self.is_polled:
                raise Stopped(number)

    def should_stop_at(self, step: int) -> bool:
        """Whether training stops here, with so many steps done: asked by every process of the run between all steps.

        Whoever was told lets the others know, and makes one step more with them: no process can end that step before
        all have begun it, so that all of them find the note when they ask next.
        """
        if not torch.distributed.is_initialized():
            return self.number is not None
        store = _store()
        if self.number is not None and not store.check([AGREED]):
            store.set(AGREED, f"{step + 1} {self.number}")
        if not store.check([AGREED]):
            return False
        agreed, number = map(int, store.get(AGREED).split())
        self.number = self.number or number
        return step >= agreed

    def stop_requested(self) -> bool:
        """Whether any process of the run was told to stop, where all are between the same two steps."""
        if torch.distributed.is_initialized() and self.number is not None:
            _store().set(AGREED, f"0 {self.number}")
        return self.should_stop_at(0)

    def raise_stopped(self) -> None:
        """End the run."""
        assert self.number is not None
        raise Stopped(self.number)

    @contextmanager
    def polled(self) -> Iterator[None]:
        """A block that asks by itself whether it is to stop."""
        self.is_polled = True
        try:
            yield
        finally:
            self.is_polled = False
        if self.number is not None:  # after the last step
            self.raise_stopped()

    def end(self, number: int) -> None:
        """End the process from outside of its main thread, but not in the middle of a checkpoint."""
        with self.saving:
            self.on_forced_exit(str(Stopped(number)))
            os._exit(Stopped(number).code)


@contextmanager
def handle_signals() -> Iterator[Stop]:
    """Listen to the signals while the block runs, and end as they ask.

    The handlers of Python run in the main thread, which may hang in a collective of processes that are gone: so a
    thread listens as well, and ends the process when it has not ended by itself in time.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    in_slurm = "SLURM_JOB_ID" in os.environ
    requeues = (signal.SIGUSR1, signal.SIGUSR2) if in_slurm else ()
    numbers = (signal.SIGINT, signal.SIGTERM, *requeues)
    read, write = socket.socketpair()
    write.setblocking(False)
    over = threading.Event()

    def listen() -> None:
        while (number := read.recv(1)) and number[0] not in numbers:
            pass
        if number and not over.wait(GRACE_S):
            stop.end(number[0])

    threading.Thread(target=listen, daemon=True).start()
    before = {number: signal.signal(number, stop.note) for number in numbers}
    earlier = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
    try:
        yield stop
    except Stopped as error:
        if error.number in requeues:
            _requeue(error.number, before[signal.Signals(error.number)])
        if in_slurm:
            # Whoever runs the job would take a run that ends by an exception of its own for one that has a result. And
            # srun ends the first process, which may still have to write, with any other that ends like this.
            print(error, file=sys.stderr, flush=True)
            if os.environ.get("SLURM_PROCID", "0") != "0":
                time.sleep(GRACE_S)
            os._exit(error.code)
        raise
    finally:
        over.set()
        signal.set_wakeup_fd(earlier)
        for number, handler in before.items():
            signal.signal(number, handler)
        write.close()


def _store() -> Any:
    """What the processes of a run share from their start on."""
    return torch.distributed.distributed_c10d._get_default_store()


def _requeue(number: int, known: Any) -> None:
    """Put this Slurm job back into the queue, once: by submitit where it started the job, which counts how often."""
    if callable(known):
        known(number, None)
    elif int(os.environ.get("SLURM_PROCID", 0)) == 0:
        subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)
