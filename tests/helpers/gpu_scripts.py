"""Runs scripts on the GPU in processes of their own, alone or together."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[1] / "gpu" / "train_script.py"


def train(folder: Path, environments: list[dict[str, str]] | None = None, **settings: Any) -> dict[str, Any]:
    """Runs the script once per environment, all at once; returns what the first one wrote."""
    folder.mkdir()
    line = [sys.executable, str(SCRIPT), json.dumps({"folder": str(folder), **settings})]
    run_together([(line, environment) for environment in environments or [{}]], folder)
    return json.loads((folder / "0.json").read_text())


def run_together(processes: list[tuple[list[str], dict[str, str]]], folder: Path, timeout_s: float = 200) -> None:
    """Runs some commands at once, each with variables of its own, and fails with the output of one that failed."""
    helpers = str(Path(__file__).parent)
    base = {**os.environ, "PYTHONPATH": os.pathsep.join([helpers, os.environ.get("PYTHONPATH", "")])}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": folder}
    started = [subprocess.Popen(line, env={**base, **variables}, **streams) for line, variables in processes]
    try:
        outputs = [process.communicate(timeout=timeout_s)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == 0, output


def ranks(world_size: int, cards: int) -> list[dict[str, str]]:
    """The environment of each process, as torchrun sets it: one per card, or all on the first one as separate nodes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": str(world_size)}
    own = [("LOCAL_RANK", "NODE_RANK"), ("NODE_RANK", "LOCAL_RANK")][cards < world_size]
    return [{**shared, own[0]: str(rank), own[1]: "0"} for rank in range(world_size)]
