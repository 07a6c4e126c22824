"""Stop signals: a run stops at a step that all its processes agree on."""

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kikitori.runtime import signals
from kikitori.runtime.errors import Stopped
from kikitori.runtime.signals import Stop, handle_signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_outside_of_training_ends_the_run_at_once(number: int, code: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as caught, handle_signals():
        os.kill(os.getpid(), number)
    assert caught.value.code == code
    assert str(caught.value) == f"stopped by {signal.Signals(number).name}"
    assert signal.getsignal(number) == before


def test_training_continues_until_its_next_check_and_an_echo_of_the_signal_has_no_effect() -> None:
    with handle_signals() as stop:
        assert not stop.should_stop_at(1)
        stop.is_polled = True
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.should_stop_at(1)
        assert stop.stop_requested()
        with pytest.raises(Stopped, match="by SIGTERM"):
            stop.raise_stopped()


REPEATED = """
import os, signal, time
from kikitori.runtime import processes
from kikitori.runtime.errors import Stopped
from kikitori.runtime.signals import handle_signals
processes.ECHO_S = 0.2
def send():
    os.kill(os.getpid(), signal.SIGTERM)
{block}
"""


@pytest.mark.parametrize(
    "block",
    [
        "with handle_signals() as stop, stop.polled():\n    send(); send(); time.sleep(0.3); send(); print('on')",
        "with processes.collect_stop_signals() as s:\n    send(); send(); time.sleep(0.3); send(); print('on')",
        "once = processes.StopOnce()\nsignal.signal(15, once.handle)\ntry:\n    send()\nexcept Stopped:\n    pass\n"
        "send(); time.sleep(0.3); send(); print('on')",
    ],
)
def test_a_second_signal_ends_the_process_at_once(block: str) -> None:
    """Also where the first one was swallowed by a library, or while children are waited for."""
    environment = {key: value for key, value in os.environ.items() if key != "SLURM_JOB_ID"}
    code = REPEATED.format(block=block)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stdout) == (143, ""), done.stderr


def test_a_signal_in_the_last_step_still_stops_the_run() -> None:
    with pytest.raises(Stopped), handle_signals() as stop, stop.polled():
        os.kill(os.getpid(), signal.SIGTERM)


HANGS = """
import ctypes, sys, threading, time
from kikitori.runtime import signals
sys.excepthook = lambda kind, error, trace: sys.exit(error.code)
c, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
signals.GRACE_S = 0.5
with signals.handle_signals(lambda reason: print(reason, flush=True)) as stop:
    {block}
"""


@pytest.mark.parametrize(
    ("block", "least_s"),
    [
        # As in a collective operation whose other processes died: Python's handlers never run in the main thread. It is
        # `on` when that thread waits, or the signal could still arrive before.
        (
            "threading.Timer(0.5, print, ['on'], {'flush': True}).start()"
            "; c.pthread_mutex_lock(mutex); c.pthread_mutex_lock(mutex)",
            0.5,
        ),
        ("with stop.polled(), stop.saving: print('on', flush=True); time.sleep(2); print('saved', flush=True)", 2.0),
    ],
)
def test_a_run_that_does_not_end_in_time_is_ended_but_not_while_it_saves(block: str, least_s: float) -> None:
    line = [sys.executable, "-c", HANGS.format(block=block)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    start = time.monotonic()
    process.terminate()
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 143
    assert time.monotonic() - start > least_s - 0.1
    assert ("saved" in out) == ("saved" in block)


@given(st.integers(1, 4), st.data())
def test_all_processes_stop_at_the_same_step_whichever_gets_the_signal_and_when(processes: int, data: Any) -> None:
    """In any order of events that training allows: no process ends a step before all have begun it."""
    with pytest.MonkeyPatch.context() as patch:
        store = torch.distributed.HashStore()
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(signals, "_store", lambda: store)
        stops, begun, ended = [Stop() for _ in range(processes)], [0] * processes, [0] * processes
        stopped_at: dict[int, int] = {}
        signalled = data.draw(st.lists(st.tuples(st.integers(0, 30), st.integers(0, processes - 1)), min_size=1))
        for moment in range(1000):
            for when, process in signalled:
                if when == moment:
                    stops[process].number = signal.SIGTERM
            ready = [
                p for p in range(processes) if p not in stopped_at and (begun[p] == ended[p] or min(begun) >= begun[p])
            ]
            if not ready:
                break
            p = data.draw(st.sampled_from(ready))
            if begun[p] > ended[p]:
                ended[p] += 1
            elif stops[p].should_stop_at(ended[p]):
                stopped_at[p] = ended[p]
            else:
                begun[p] += 1
        assert len(stopped_at) == processes
        assert len(set(stopped_at.values())) == 1
