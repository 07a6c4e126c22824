"""SIGTERM and SIGINT: training saves at a step that all processes agree on, then exits with code 143 or 130.

During training a signal is only stored, and the present step ends first. At any other time there is nothing to save,
and the signal ends the run at once. Under Slurm, SIGUSR1 and SIGUSR2 announce that the job's time is almost up: the run
is saved and requeued.
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
from kikitori.runtime.processes import StopOnce

# Seconds in which a run must end by itself. Slurm and most other systems kill a job 30 s after the signal.
GRACE_S = 25.0
# The key of the shared store under which processes agree on the step after which they stop.
STOP_KEY = "kikitori/stop"


class Stop:
    """The stop request of a run: whether a signal arrived, which one, and at which step training stops."""

    def __init__(self, on_forced_exit: Callable[[str], None] = lambda reason: None) -> None:
        self.number: int | None = None
        # True during training, which checks for a signal between steps.
        self.is_polled = False
        # Held while a checkpoint is written, so that a forced exit never interrupts that.
        self.saving = threading.Lock()
        # Called with the reason before a forced exit, to write down how the run ended.
        self.on_forced_exit = on_forced_exit
        self.once = StopOnce()

    def handle(self, number: int, _: Any) -> None:
        """Handles a signal. One that comes again ends the process at once, except while a checkpoint is written."""
        # Slurm announces the end of a job with several signals.
        if "SLURM_JOB_ID" not in os.environ and not self.saving.locked() and self.once.is_repeated(number):
            return
        if self.number is None:
            self.number = number
            if not self.is_polled:
                raise Stopped(number)

    def should_stop_at(self, step: int) -> bool:
        """Returns whether training stops now, after `step` steps. Every process calls this between all steps.

        The process that got the signal writes the stop step to the shared store and trains one more step. No process
        can finish that step before all have started it, so each sees the entry at its next check.
        """
        if not torch.distributed.is_initialized():
            return self.number is not None
        store = _store()
        if self.number is not None and not store.check([STOP_KEY]):
            store.set(STOP_KEY, f"{step + 1} {self.number}")
        if not store.check([STOP_KEY]):
            return False
        stop_step, number = map(int, store.get(STOP_KEY).split())
        self.number = self.number or number
        return step >= stop_step

    def stop_requested(self) -> bool:
        """Returns whether any process of the run got a signal. All must call this between the same two steps."""
        if torch.distributed.is_initialized() and self.number is not None:
            _store().set(STOP_KEY, f"0 {self.number}")
        return self.should_stop_at(0)

    def raise_stopped(self) -> None:
        """Ends the run after a signal."""
        assert self.number is not None
        raise Stopped(self.number)

    @contextmanager
    def polled(self) -> Iterator[None]:
        """Stores signals instead of raising during the block, which calls `should_stop_at` itself."""
        self.is_polled = True
        try:
            yield
        finally:
            self.is_polled = False
        if self.number is not None:  # it came after the last step
            self.raise_stopped()

    def force_exit(self, number: int) -> None:
        """Ends the process from another thread, but not while a checkpoint is written."""
        with self.saving:
            self.on_forced_exit(str(Stopped(number)))
            os._exit(Stopped(number).code)


@contextmanager
def handle_signals(on_forced_exit: Callable[[str], None] = lambda reason: None) -> Iterator[Stop]:
    """Handles stop signals during the block. Outside of the main thread it has no effect.

    on_forced_exit: called with the reason before the process is ended by force.

    Python runs signal handlers in the main thread, which may hang in a collective operation whose other processes have
    died. A second thread therefore receives the signals, too, and ends the process if it has not ended in time.
    """
    stop = Stop(on_forced_exit)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    in_slurm = "SLURM_JOB_ID" in os.environ
    requeues = (signal.SIGUSR1, signal.SIGUSR2) if in_slurm else ()
    numbers = (signal.SIGINT, signal.SIGTERM, *requeues)
    read, write = socket.socketpair()
    write.setblocking(False)
    finished = threading.Event()

    def exit_in_time() -> None:
        while (number := read.recv(1)) and number[0] not in numbers:
            pass
        if number and not finished.wait(GRACE_S):
            stop.force_exit(number[0])

    threading.Thread(target=exit_in_time, daemon=True).start()
    before = {number: signal.signal(number, stop.handle) for number in numbers}
    earlier = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
    try:
        yield stop
    except Stopped as error:
        if error.number in requeues:
            _requeue(error.number, before[signal.Signals(error.number)])
        if in_slurm:
            # submitit would store an exception as the job's result. And srun ends all processes as soon as one exits
            # like this, so the others wait until process 0 has written its files.
            print(error, file=sys.stderr, flush=True)
            if os.environ.get("SLURM_PROCID", "0") != "0":
                time.sleep(GRACE_S)
            os._exit(error.code)
        raise
    finally:
        finished.set()
        signal.set_wakeup_fd(earlier)
        for number, handler in before.items():
            signal.signal(number, handler)
        write.close()


def _store() -> Any:
    """Returns the key-value store that the processes of a run share from their start."""
    return torch.distributed.distributed_c10d._get_default_store()


def _requeue(number: int, submitit_handler: Any) -> None:
    """Requeues this Slurm job, once. If submitit started the job, its own handler does it and counts the attempts."""
    if callable(submitit_handler):
        submitit_handler(number, None)
    elif int(os.environ.get("SLURM_PROCID", 0)) == 0:
        subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)
