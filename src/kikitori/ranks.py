"""The processes of a run on several devices of this machine: one a device, all with the same configuration.

Lightning would start them by the command line again, which under a multirun runs the whole sweep once more, or, where a
search chose the values, trains other ones in each process. Ours get the resolved configuration through a pipe.
Elsewhere Slurm's srun or torchrun start the processes, and nothing is started here.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kikitori.errors import ConfigError, TrainingError

# A process looks this often whether those it depends on are alive.
WATCH_S = 1.0


def started_elsewhere() -> bool:
    """Whether this process is one of several that srun or torchrun (or `together`) started."""
    return "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) > 1


@contextmanager
def together(
    command: str, config: dict[str, Any], folder: Path, devices: int, nodes: int, on_death: Callable[[str], None]
) -> Iterator[None]:
    """Start the other processes of a run, and end them with it.

    Where one of them dies, `on_death` is told and this process ends at once: it may hang in a collective for ever.
    """
    if started_elsewhere() or devices * nodes == 1:
        yield
        return
    if nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={nodes}: the processes on several machines are started by Slurm "
            "(hydra/launcher=slurm, or srun) or torchrun, not by kikitori itself"
        )
    import torch  # here, for the command line watches its parent before it loads anything heavy

    before = dict(os.environ)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "NODE_RANK": "0"}
    os.environ |= {"WORLD_SIZE": str(devices)}
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // devices)))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    others = [_start(command, config, folder, rank) for rank in range(1, devices)]
    os.environ["LOCAL_RANK"] = "0"
    ended = threading.Event()
    threading.Thread(target=_watch, args=(others, ended, on_death), daemon=True).start()
    try:
        yield
        for rank, process in enumerate(others, start=1):
            if code := process.wait():
                raise TrainingError(f"process {rank} of {devices} ended with {code}; see its output")
    finally:
        ended.set()
        for process in others:
            process.kill()
            process.wait()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        os.environ.clear()
        os.environ |= before


def _start(command: str, config: dict[str, Any], folder: Path, rank: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "LOCAL_RANK": str(rank), "KIKITORI_PARENT": str(os.getpid())}
    line = [sys.executable, "-m", "kikitori.rank", command, str(folder)]
    process = subprocess.Popen(line, stdin=subprocess.PIPE, env=environment)
    assert process.stdin is not None
    process.stdin.write(json.dumps(config).encode())
    process.stdin.close()
    return process


def _watch(others: list[subprocess.Popen[bytes]], ended: threading.Event, on_death: Callable[[str], None]) -> None:
    while not ended.wait(WATCH_S):
        for rank, process in enumerate(others, start=1):
            if process.poll():
                # If this process notices by itself, its own message is the better one.
                if ended.wait(5 * WATCH_S):
                    return
                code = process.returncode
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
                on_death(f"process {rank} of {len(others) + 1} {how}")
                for other in others:
                    other.kill()
                os._exit(1)


def die_with_parent() -> None:
    """End this process when the one that started it is gone, however that ended; no orphan trains on.

    The parent is named by KIKITORI_PARENT; without it nothing is done.
    """
    parent = int(os.environ.pop("KIKITORI_PARENT", 0))

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        os.kill(os.getpid(), signal.SIGKILL)

    if parent:
        threading.Thread(target=look, daemon=True).start()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
