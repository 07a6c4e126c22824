"""Starts one process per device with the same configuration and ends them all with the run.

Lightning would run the command line again in each process. Under a multirun that repeats the whole sweep, and where a
search chose the values, each process would train other ones. These processes get the resolved configuration through a
pipe, meet through a file that only this user can open, and then talk on the loopback interface. If Slurm's srun or
torchrun started the processes, nothing is started here, and they meet on the network.
"""

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kikitori.runtime.errors import ConfigError, KikitoriError, Stopped, TrainingError, one_line
from kikitori.runtime.processes import PARENT
from kikitori.runtime.text import print_traceback

# Seconds between two checks of whether the other processes are alive.
WATCH_S = 1.0
# The environment variable that names the file through which the processes of one machine meet.
MEETING = "KIKITORI_MEETING"


def world_size() -> int:
    """Returns how many processes srun, torchrun or `run_on_all_devices` started, this one included; 1 if none did.

    For Slurm it counts the tasks of the step, not of the job: a sweep inside an allocation starts its trials itself.
    """
    if "LOCAL_RANK" in os.environ:
        return int(os.environ.get("WORLD_SIZE", 1))
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))


def rank() -> int:
    """Returns the number of this process among them, from 0."""
    ranks = [os.environ[key] for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if key in os.environ]
    return int(ranks[0]) if world_size() > 1 else 0


def is_main() -> bool:
    """Returns whether this process is the one of its run that writes files and logs."""
    from pytorch_lightning.utilities import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0


def restarted() -> bool:
    """Returns whether Slurm requeued this job, so that it runs again."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0


def all_gather(value: Any) -> list[Any]:
    """Returns the values of all processes of the run, in the order of their ranks.

    value: plain, of numbers, texts, tensors and containers. Bytes of another process are never unpickled to objects.
    """
    import torch
    from torch import distributed

    if not distributed.is_initialized():
        return [value]
    file = io.BytesIO()
    torch.save(value, file)
    own = torch.frombuffer(file.getbuffer(), dtype=torch.uint8).to(
        "cuda" if distributed.get_backend() == "nccl" else "cpu"
    )
    sizes = [torch.empty(1, dtype=torch.int64, device=own.device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(sizes, torch.tensor([len(own)], device=own.device))
    longest = max(map(int, sizes))
    parts = [own.new_empty(longest) for _ in sizes]
    distributed.all_gather(parts, torch.nn.functional.pad(own, (0, longest - len(own))))
    files = (io.BytesIO(part[:size].cpu().numpy().tobytes()) for part, size in zip(parts, sizes, strict=True))
    return [torch.load(file, weights_only=True) for file in files]


@contextmanager
def run_on_all_devices(
    command: str, config: dict[str, Any], folder: Path, devices: int, nodes: int, on_death: Callable[[str], None]
) -> Iterator[None]:
    """Starts the other processes of a run, and ends them with the block.

    devices: per node. on_death: called with the reason when one of the processes dies. This process then exits at once,
    because it may wait in a collective operation that never completes.
    Raises ConfigError if processes exist already, but not one per device.
    """
    if world_size() not in (1, devices * nodes):
        raise ConfigError(
            f"{world_size()} processes were started, but trainer.devices={devices} on trainer.num_nodes={nodes} need "
            f"{devices * nodes}; start one per device (srun --ntasks-per-node={devices} --nodes={nodes})"
        )
    if devices * nodes == 1:
        yield
    elif world_size() > 1:
        with _exit_with_first_process(folder):
            yield
    elif nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={nodes}: the processes on several machines are started by Slurm "
            "(kikitori train -m hydra/launcher=slurm, or srun) or torchrun, not by kikitori itself"
        )
    else:
        with _other_processes(command, config, folder, devices, on_death):
            yield


@contextmanager
def _other_processes(
    command: str, config: dict[str, Any], folder: Path, devices: int, on_death: Callable[[str], None]
) -> Iterator[None]:
    """Starts processes 1 to `devices` - 1 on this machine. This process is number 0."""
    import torch  # here, so that the command line checks its arguments before it loads torch

    before, threads = dict(os.environ), torch.get_num_threads()
    place = tempfile.TemporaryDirectory(prefix="kikitori-")
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    os.environ |= {
        MEETING: f"{place.name}/meeting",
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": f"={loopback}",
    }
    os.environ |= {"WORLD_SIZE": str(devices), "NODE_RANK": "0"}
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads // devices)))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    others = [_start(command, config, folder, number) for number in range(1, devices)]
    os.environ["LOCAL_RANK"] = "0"
    ended = threading.Event()
    threading.Thread(target=_watch, args=(others, ended, on_death), daemon=True).start()
    try:
        yield
        for process in others:
            process.wait()
        if failure := _failure(others):
            raise TrainingError(failure)
    except (KikitoriError, KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        # An error in a collective operation most often means that another process died: name that one.
        time.sleep(WATCH_S)
        if failure := _failure(others):
            raise TrainingError(f"{failure} ({one_line(error)})") from error
        raise
    finally:
        ended.set()
        for process in others:
            process.kill()
            process.wait()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        place.cleanup()
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ |= before


def _start(command: str, config: dict[str, Any], folder: Path, local_rank: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "LOCAL_RANK": str(local_rank), PARENT: str(os.getpid())}
    line = [sys.executable, "-P", "-m", "kikitori.cli.worker", command, str(folder)]
    process = subprocess.Popen(line, stdin=subprocess.PIPE, env=environment)
    assert process.stdin is not None
    process.stdin.write(json.dumps(config).encode())
    process.stdin.close()
    return process


def _watch(others: list[subprocess.Popen[bytes]], ended: threading.Event, on_death: Callable[[str], None]) -> None:
    """Ends this process when another one has died, unless it notices that itself within some seconds."""
    while not ended.wait(WATCH_S):
        if (failure := _failure(others)) and not ended.wait(5 * WATCH_S):
            _exit(failure, others, on_death)


def _failure(others: list[subprocess.Popen[bytes]]) -> str | None:
    """Describes the first process that ended with an error."""
    for number, process in enumerate(others, start=1):
        if code := process.poll():
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}; see its output"
            return f"process {number} of {len(others) + 1} {how}"
    return None


def _exit(failure: str, others: list[subprocess.Popen[bytes]], on_death: Callable[[str], None]) -> None:
    # If a signal stopped one of them, the run ends as if all had received it.
    codes = {other.poll() for other in others}
    stopped = next((Stopped(n) for n in (signal.SIGTERM, signal.SIGINT) if Stopped(n).code in codes), None)
    on_death(str(stopped or failure))
    for other in others:
        other.kill()
    os._exit(stopped.code if stopped else 1)


@contextmanager
def _exit_with_first_process(folder: Path) -> Iterator[None]:
    """Ends a process that srun or torchrun started when it fails, and when results.json reports that process 0 failed.

    srun and torchrun end all processes when one exits with an error code. But a launcher around process 0 may catch its
    error and exit normally, while the others wait in a collective operation.
    """
    if rank() == 0:
        yield
        return

    def read_results() -> str:
        path = folder / "results.json"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    # A resumed run may have failed before.
    earlier = read_results()

    def wait_for_failure() -> None:
        while '"status": "failed"' not in (results := read_results()) or results == earlier:
            time.sleep(WATCH_S)
        # Process 0 gets some time to report its error to its launcher.
        time.sleep(5 * WATCH_S)
        os._exit(1)

    threading.Thread(target=wait_for_failure, daemon=True).start()
    try:
        yield
    except Stopped:
        raise
    except BaseException as error:
        if isinstance(error, KikitoriError):
            print(f"process {rank()}: {error}", file=sys.stderr)
        else:
            print_traceback(error)
        sys.stderr.flush()
        # Slurm then kills the others at once: process 0 gets some time to write an error of its own.
        time.sleep(5 * WATCH_S)
        os._exit(1)
