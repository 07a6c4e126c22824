"""Processes that exit with the one that started them, however that one ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHILD = """
import sys, time
sys.platform = {platform!r}
from kikitori.runtime import processes
processes.POLL_S = 0.05
time.sleep({delay_s})
processes.exit_with_launcher()
print(flush=True)
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys, time
os.environ["KIKITORI_PARENT"] = str(os.getpid())
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdout=subprocess.PIPE if {waits} else subprocess.DEVNULL)
if {waits}:
    child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("platform", ["linux", "darwin"])
@pytest.mark.parametrize("killed_first", [False, True])
def test_a_process_exits_with_its_launcher_even_if_that_is_killed_before_the_process_has_started(
    platform: str, killed_first: bool
) -> None:
    child = CHILD.format(platform=platform, delay_s=float(killed_first))
    line = [sys.executable, "-c", PARENT.format(child=child, waits=not killed_first)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        pid = int(launcher.stdout.readline())
        assert is_running(pid)
        launcher.kill()
    end = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < end, "it still runs without its launcher"
        time.sleep(0.05)


def test_a_process_without_a_launcher_runs_on_and_its_children_do_not_inherit_the_variable() -> None:
    code = "import os; from kikitori.runtime.processes import exit_with_launcher; exit_with_launcher(); "
    code += "print('KIKITORI_PARENT' in os.environ)"
    for variables in ({}, {"KIKITORI_PARENT": str(os.getpid())}):
        done = subprocess.run([sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "False\n")


def test_a_process_of_another_parent_is_killed() -> None:
    code = "from kikitori.runtime.processes import exit_with_launcher; exit_with_launcher(); print('runs on')"
    variables = os.environ | {"KIKITORI_PARENT": str(os.getppid())}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")


LEFT_BEHIND = """
import multiprocessing, signal, time
from kikitori.runtime.processes import kill_workers_at_exit

def work(ready):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready.set()
    time.sleep(60)

context = multiprocessing.get_context("fork")
ready = context.Event()
context.Process(target=work, args=(ready,), daemon=True).start()
ready.wait()
kill_workers_at_exit()
"""


def test_a_script_does_not_wait_for_workers_that_ignore_sigterm() -> None:
    script = LEFT_BEHIND
    assert subprocess.run([sys.executable, "-c", script], timeout=30).returncode == 0


FORK = """
import os, sys
from kikitori.runtime import processes

seen = []
frames = sys._current_frames
sys._current_frames = lambda: seen.append(os.getpid()) or frames()
run = os.getpid()
if os.fork():
    os.wait()
    print(seen == [run])
"""


@pytest.mark.skipif(sys.version_info >= (3, 11, 10), reason="Python itself waits for the lock since 3.11.10")
def test_a_fork_waits_for_threads_that_enter_python() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], timeout=30, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
