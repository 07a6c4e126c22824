"""The processes of a run on several devices: one a device, all with the same configuration, and none outlives the run.

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
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kikitori.runtime.errors import ConfigError, KikitoriError, Stopped, TrainingError

# A process looks this often whether those it depends on are alive.
WATCH_S = 1.0


def world_size() -> int:
    """How many processes srun or torchrun (or `together`) started, of which this is one; 1 where none of them did.

    The step's tasks, not the job's: a sweep that runs inside an allocation starts the processes of its trials itself.
    """
    if "LOCAL_RANK" in os.environ:
        return int(os.environ.get("WORLD_SIZE", 1))
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))


def rank() -> int:
    """Which of them this is."""
    known = [os.environ[key] for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if key in os.environ]
    return int(known[0]) if world_size() > 1 else 0


def restarted() -> bool:
    """Whether Slurm ran this job before, and put it back into its queue."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0


@contextmanager
def run_on_all_devices(
    command: str, config: dict[str, Any], folder: Path, devices: int, nodes: int, on_death: Callable[[str], None]
) -> Iterator[None]:
    """Start the other processes of a run, and end them with it.

    Where one of them dies, `on_death` is told and this process ends at once: it may hang in a collective for ever.
    Raises ConfigError where processes are there already, but not one a device.
    """
    if world_size() not in (1, devices * nodes):
        raise ConfigError(
            f"{world_size()} processes were started, but trainer.devices={devices} on trainer.num_nodes={nodes} take "
            f"{devices * nodes}; start one a device (srun --ntasks-per-node={devices} --nodes={nodes})"
        )
    if devices * nodes == 1:
        yield
    elif world_size() > 1:
        with _ends_with_the_others(folder):
            yield
    elif nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={nodes}: the processes on several machines are started by Slurm "
            "(kikitori train -m hydra/launcher=slurm, or srun) or torchrun, not by kikitori itself"
        )
    else:
        with _started(command, config, folder, devices, on_death):
            yield


@contextmanager
def _started(
    command: str, config: dict[str, Any], folder: Path, devices: int, on_death: Callable[[str], None]
) -> Iterator[None]:
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
        for process in others:
            process.wait()
        if died := _died(others):
            raise TrainingError(died)
    except (KikitoriError, KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        # What a collective complains of is most often that another process is gone.
        time.sleep(WATCH_S)
        if died := _died(others):
            raise TrainingError(f"{died} ({str(error).splitlines()[0] or type(error).__name__})") from error
        raise
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
    line = [sys.executable, "-P", "-m", "kikitori.cli.worker", command, str(folder)]
    process = subprocess.Popen(line, stdin=subprocess.PIPE, env=environment)
    assert process.stdin is not None
    process.stdin.write(json.dumps(config).encode())
    process.stdin.close()
    return process


def _watch(others: list[subprocess.Popen[bytes]], ended: threading.Event, on_death: Callable[[str], None]) -> None:
    while not ended.wait(WATCH_S):
        # If this process notices by itself, it ends in good order.
        if (died := _died(others)) and not ended.wait(5 * WATCH_S):
            _die(died, others, on_death)


def _died(others: list[subprocess.Popen[bytes]]) -> str | None:
    """Which of the processes ended with an error, and how."""
    for rank, process in enumerate(others, start=1):
        if code := process.poll():
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}; see its output"
            return f"process {rank} of {len(others) + 1} {how}"
    return None


def _die(reason: str, others: list[subprocess.Popen[bytes]], on_death: Callable[[str], None]) -> None:
    # One that was told to stop ends as if all had been.
    codes = {other.poll() for other in others}
    stopped = next((Stopped(n) for n in (signal.SIGTERM, signal.SIGINT) if Stopped(n).code in codes), None)
    on_death(str(stopped or reason))
    for other in others:
        other.kill()
    os._exit(stopped.code if stopped else 1)


@contextmanager
def _ends_with_the_others(folder: Path) -> Iterator[None]:
    """In a process that srun or torchrun started: they end the others of one that ends with an error code.

    A launcher around it may catch the error and end well, while the others wait in a collective: so a process besides
    the first ends at once, and when results.json says that the first one has failed.
    """
    if rank() == 0:
        yield
        return

    def told() -> str:
        path = folder / "results.json"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    # A run that goes on may have failed before.
    earlier = told()

    def look() -> None:
        while '"status": "failed"' not in (now := told()) or now == earlier:
            time.sleep(WATCH_S)
        # The first process has some time to tell its launcher.
        time.sleep(5 * WATCH_S)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    except Stopped:
        raise
    except BaseException as error:
        if isinstance(error, KikitoriError):
            print(f"process {rank()}: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stderr.flush()
        # Slurm kills the others outright: if the first one has an error of its own to write, it has some time.
        time.sleep(5 * WATCH_S)
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


def is_main() -> bool:
    """Whether this process is the one of its run that writes; a run on several devices has one a device."""
    from pytorch_lightning.utilities import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0


def all_gather(value: Any) -> list[Any]:
    """What each process of a run has, by their ranks."""
    import torch

    if not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
