"""Runs programs on the GPU in processes of their own, all at once."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[1] / "gpu" / "train_script.py"
# A process as its command line and the variables it needs.
Process = tuple[list[str], Mapping[str, str]]


def train(folder: Path, runs: Mapping[str, dict[str, Any]], cards: int = 1) -> dict[str, Any]:
    """Runs train_script.py with each of the named settings; returns what rank 0 of each wrote to its own folder.

    A run with a `world_size` has that many processes, as `ranks` starts them.
    """
    processes: list[Process] = []
    for name, settings in runs.items():
        (folder / name).mkdir()
        line = [sys.executable, str(SCRIPT), json.dumps({"folder": str(folder / name), **settings})]
        world_size = settings.get("world_size", 1)
        processes += [(line, variables) for variables in (ranks(world_size, cards) if world_size > 1 else [{}])]
    run_together(processes, folder)
    return {name: json.loads((folder / name / "0.json").read_text()) for name in runs}


def run_together(processes: Sequence[Process], folder: Path, timeout_s: float = 200) -> None:
    """Runs processes at once in a folder; fails with the output of those that failed or did not end in time."""
    logs = [folder / f"{number}.log" for number in range(len(processes))]
    started = [start(process, log) for process, log in zip(processes, logs, strict=True)]
    end = time.monotonic() + timeout_s
    try:
        while any(process.poll() is None for process in started) and time.monotonic() < end:
            time.sleep(0.1)
    finally:
        for process in started:
            process.kill()
    codes = [process.wait() for process in started]
    assert not any(codes), "\n".join(log.read_text() for log, code in zip(logs, codes, strict=True) if code)


def start(process: Process, log: Path) -> subprocess.Popen[bytes]:
    """Starts a process in the folder of its log."""
    line, variables = process
    helpers = str(Path(__file__).parent)
    path = os.pathsep.join([helpers, os.environ.get("PYTHONPATH", "")])
    with log.open("wb") as output:
        environment = {**os.environ, "PYTHONPATH": path, **variables}
        return subprocess.Popen(line, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent, env=environment)


def ranks(world_size: int, cards: int) -> list[dict[str, str]]:
    """The variables of each process, as torchrun sets them: one per card, or all on the first one as separate nodes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": str(world_size)}
    own, other = ("LOCAL_RANK", "NODE_RANK") if cards >= world_size else ("NODE_RANK", "LOCAL_RANK")
    return [{**shared, own: str(rank), other: "0"} for rank in range(world_size)]
