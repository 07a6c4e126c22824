"""Loader workers of the command where Python starts processes in another way, as Python 3.14 does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import SMALL

pytestmark = [pytest.mark.long, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

# The command, where the default is a fork server.
COMMAND = """
import multiprocessing
multiprocessing.set_start_method("forkserver")
from kikitori.cli.main import main
main()
"""


def start(cache: Path, *arguments: str) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-c", COMMAND, "train", *SMALL, "data.num_workers=2", "logger=none", *arguments]
    environment = {**os.environ, "KIKITORI_CACHE": str(cache), "NO_COLOR": "1"}
    return subprocess.Popen(line, cwd=cache, env=environment, start_new_session=True)


def session(leader: int) -> list[int]:
    """The processes that a session leader has started and that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, own = path.read_text().rsplit(")", 1)[1].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(own) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


def test_a_run_with_workers_completes(tmp_path: Path) -> None:
    process = start(tmp_path, "hydra.run.dir=run")
    assert process.wait(300) == 0
    assert session(process.pid) == []


def test_a_killed_run_leaves_no_process(tmp_path: Path) -> None:
    process = start(tmp_path, "hydra.run.dir=run", "trainer.max_steps=100000")
    try:
        end = time.monotonic() + 200
        while not list(tmp_path.glob("run/checkpoints/*.ckpt")):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        assert len(session(process.pid)) >= 3
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    end = time.monotonic() + 20
    while left := session(process.pid):
        assert time.monotonic() < end, f"processes {left} outlive the run"
        time.sleep(0.1)
