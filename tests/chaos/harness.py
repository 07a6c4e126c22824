"""Starts runs of the real command, interrupts or damages them, and compares the result with an uninterrupted run.

A row of the table is a function `name(count, seed, folder) -> dict(fault, runs, good, notes)`. Most rows pass a
function of one run to `rows_of`. It gets a random generator and an empty folder of its own, and raises Miss if the run
does not recover as promised.
"""

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NamedTuple

import child
import numpy as np
import torch

from kikitori.training import checkpoints

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"
STEPS, EVERY = 25, 5
# The smallest training with all parts: several checkpoints, a best one that changes, dropout, a warm-up, an epoch that
# is not a whole number of steps, and scores of all three splits.
SMALL = [
    *(
        "experiment=demo",
        "guard.clips=0",
        "model.d_model=16",
        "model.encoder_layers=1",
        "model.decoder_layers=1",
        "model.dropout=0.1",
    ),
    *("data.limit={train: 7, validation: 3, test: 2}", "data.global_batch_size=4", "data.window_edges_s=[1.6,2,2.5]"),
    *("optim.lr=3e-3", "optim.warmup_steps=4", f"trainer.max_steps={STEPS}", f"validation.every_steps={EVERY}"),
    *("generation.max_new_tokens=6", "score.train_clips=2", "score.full_window_clips=2", "logger=none"),
    *("callbacks.checkpoint.monitor=val/loss", "data.num_workers=0"),
]
# Variants: the window that clips are padded to, and the number of loader workers.
VARIANTS = [[f"data.window={window}", f"data.num_workers={n}"] for window in ("full", "bucketed") for n in (0, 2)]
FULL = VARIANTS[0]
# Every tenth run is a plain process, as a user starts it; the others are forked with everything imported.
PLAIN = 10
# Far longer than any run takes: a run that exceeds it hangs.
TIMEOUT_S = 300.0
# Nothing here changes the number of threads: runs have those that users' have.
ENVIRONMENT = {
    "NO_COLOR": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "CUDA_VISIBLE_DEVICES": "",
    # pyarrow's allocator starts a thread on import, which a fork would lose.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}

Faults = Mapping[str, Any]


class Miss(Exception):  # noqa: N818
    """A run that did not recover from its fault as promised."""


class Settings:
    """The harness's folder, the number of concurrent runs, and the only run of a row to execute, if one is selected."""

    folder = Path()
    jobs = 2
    only: int | None = None


def set_up(folder: Path, jobs: int = 2, only: int | None = None) -> None:
    """Prepare the harness in an empty folder and start the fork server."""
    Settings.folder, Settings.jobs, Settings.only = folder.resolve(), jobs, only
    folder.mkdir(parents=True, exist_ok=True)
    # Processes without root's permissions read the clips that root decoded.
    (folder / "cache").mkdir(exist_ok=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_forkserver_preload([*child.PRELOADED, "child", "faults"])
    before = dict(os.environ)
    os.environ.update(environment())
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def environment() -> dict[str, str]:
    """Environment variables of every run."""
    paths = {"KIKITORI_CACHE": str(Settings.folder / "cache"), "PYTHONPATH": os.pathsep.join([str(SOURCE), str(HERE)])}
    return ENVIRONMENT | paths


class Process:
    """A running training: forked, or a plain command."""

    _starting = threading.Lock()

    def __init__(self, folder: Path, arguments: list[str], plain: bool, faults: Faults, own: dict[str, str]) -> None:
        self.folder, self.output = folder, folder.parent / f"{folder.name}.out"
        # Marks all processes that the run starts, in whatever session they are.
        self.mark = f"{folder}#{time.monotonic_ns()}"
        settings = environment() | own | {"KIKITORI_CHAOS": self.mark}
        self.began = time.monotonic()
        self._plain: subprocess.Popen[bytes] | None = None
        if plain:
            self._start_plain(arguments, faults, settings)
            return
        target = (arguments, str(folder.parent), settings, str(self.output), faults)
        self._forked: Any = multiprocessing.get_context("forkserver").Process(target=child.command, args=target)
        with self._starting:
            self._forked.start()
        self.pid: int = self._forked.pid

    def _start_plain(self, arguments: list[str], faults: Faults, settings: dict[str, str]) -> None:
        line = [sys.executable, "-m", "kikitori", *arguments]
        if faults:
            line = [sys.executable, child.__file__, json.dumps(faults), *arguments]
        with self.output.open("ab") as output:
            how: dict[str, Any] = {"stdout": output, "stderr": output, "stdin": subprocess.DEVNULL}
            how |= {"cwd": self.folder.parent, "env": {**os.environ, **settings}, "start_new_session": True}
            self._plain = subprocess.Popen(line, **how)
        self.pid = self._plain.pid

    def poll(self) -> int | None:
        """The exit code, negative where a signal ended it; None while it runs."""
        return self._plain.poll() if self._plain else self._forked.exitcode

    def wait(self, seconds: float = TIMEOUT_S) -> int:
        """Wait for the exit code. A run that takes longer is killed, and raises Miss."""
        end = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                raise Miss(f"it did not end within {seconds:.0f} s")
            if self._plain:
                time.sleep(0.01)
            else:
                self._forked.join(1)
        code = self.poll()
        assert code is not None
        return code

    def until(self, seconds: float) -> None:
        """Wait until `seconds` after its start, or until it ends."""
        while self.poll() is None and (remaining := self.began + seconds - time.monotonic()) > 0:
            time.sleep(min(remaining, 0.02))

    def send(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it and all processes that it started."""
        for pid in [self.pid, *self.descendants()]:
            with_pid(pid, signal.SIGKILL)

    def descendants(self) -> list[int]:
        """Ids of the processes that it started and that still run."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_descendant(pid)]

    def _is_descendant(self, pid: int) -> bool:
        if pid == self.pid:
            return False
        try:
            state, _, _, session = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:4]
            marked = self.mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False
        return state != "Z" and (int(session) == self.pid or marked)

    def printed(self) -> str:
        """Everything that it and earlier runs of this folder wrote to the terminal."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""


def with_pid(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def line(folder: Path, arguments: Sequence[str]) -> list[str]:
    """Return the arguments that start the training of `SMALL` in a folder, or resume it.

    A run that was killed in its first moments left nothing to resume, and `resume=auto` starts it again.
    """
    if (folder / "results.json").exists():
        return ["train", f"resume={folder}"]
    return ["train", *SMALL, *arguments, f"hydra.run.dir={folder}", "resume=auto"]


def start(folder: Path, *arguments: str, plain: bool = False, faults: Faults | None = None, **own: str) -> Process:
    """Start the training of `SMALL` in a folder, or resume the one that is there."""
    return Process(folder, line(folder, arguments), plain, faults or {}, own)


def train(folder: Path, *arguments: str, **how: Any) -> Process:
    """Train until the process ends, with whatever exit code."""
    process = start(folder, *arguments, **how)
    process.wait()
    return process


def finish(folder: Path, *arguments: str, **how: Any) -> Process:
    """Train to the end; raise Miss if the exit code is not 0."""
    process = train(folder, *arguments, **how)
    if code := process.poll():
        raise Miss(f"a run without further faults ended with {code}: {last_lines(process.printed())}")
    return process


def last_lines(text: str, lines: int = 3) -> str:
    return " | ".join(text.strip().splitlines()[-lines:])


# --- the state of a run -----------------------------------------------------------------------------------------------


def canonical(value: Any, digest: Any) -> None:
    """Update a digest with a value: equal values give equal bytes, different values different bytes."""
    if isinstance(value, torch.Tensor):
        array = value.detach().cpu().contiguous()
        digest.update(f"tensor {array.dtype} {tuple(array.shape)} ".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    elif isinstance(value, np.ndarray):
        digest.update(f"array {value.dtype} {value.shape} ".encode() + value.tobytes())
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)} ".encode())
        for key in sorted(value, key=repr):
            digest.update(f"{key!r}: ".encode())
            canonical(value[key], digest)
    elif isinstance(value, list | tuple):
        digest.update(f"{type(value).__name__} {len(value)} ".encode())
        for item in value:
            canonical(item, digest)
    else:
        digest.update(f"{type(value).__name__} {value!r};".encode())


def sha256(value: Any) -> str:
    digest = hashlib.sha256()
    canonical(value, digest)
    return digest.hexdigest()


def state(checkpoint: Path) -> dict[str, str]:
    """Return the sha256 of each part of a checkpoint that the next step depends on."""
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    history = saved["callbacks"]["Recorder"]
    parts = {
        "step": saved["global_step"],
        "weights": saved["state_dict"],
        "optimizer": saved["optimizer_states"],
        "scheduler": saved["lr_schedulers"],
        "random states": [process["random"] for process in history["processes"]],
        "order of clips": [process["order"] for process in history["processes"]],
        "losses": [process["losses"] for process in history["processes"]],
    }
    return {name: sha256(part) for name, part in parts.items()}


def steps_of(checkpoint: Path) -> int:
    """Return the step of a checkpoint, which must be intact."""
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"])


def results(folder: Path) -> dict[str, Any]:
    path = folder / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def completed(folder: Path) -> bool:
    """Return whether the run is complete: it may be killed after its last output."""
    return results(folder).get("status") == "completed"


def outcome(folder: Path) -> dict[str, str]:
    """Return the sha256 of what a completed run leaves: last state, losses, scores and the saved model."""
    written = results(folder)
    if written.get("status") != "completed":
        raise Miss(f"results.json has status {written.get('status')}: {written.get('error')}")
    model = (folder / "model" / "model.safetensors").read_bytes()
    last = newest(folder)
    if last is None:
        raise Miss("a completed run left no checkpoint")
    return state(last) | {
        "history": sha256(written["history"]),
        "scores": sha256(written["scores"]),
        "model": hashlib.sha256(model).hexdigest(),
    }


def differing(folder: Path, variant: list[str]) -> list[str]:
    """Return the parts in which a completed run differs from the uninterrupted run of its variant."""
    found, expected = outcome(folder), reference(variant).outcome
    return [part for part in expected if found[part] != expected[part]]


def must_equal(folder: Path, variant: list[str]) -> None:
    if parts := differing(folder, variant):
        raise Miss(f"{', '.join(parts)} differ from those of an uninterrupted run")


def label(variant: tuple[str, ...]) -> str:
    """Return a folder name for a variant, without equals signs, which Hydra would parse."""
    return "-".join(word.rpartition("=")[2] for word in variant)


class Reference(NamedTuple):
    """An uninterrupted run: what it leaves, and its duration when forked."""

    outcome: dict[str, str]
    seconds: float


_reference_lock = threading.Lock()


def reference(variant: list[str]) -> Reference:
    """Return the uninterrupted run of a variant, trained once."""
    with _reference_lock:
        return _reference(tuple(variant))


@cache
def _reference(variant: tuple[str, ...]) -> Reference:
    folder = Settings.folder / "reference" / label(variant)
    folder.parent.mkdir(exist_ok=True)
    if not (Settings.folder / "cache" / "store").exists():
        # The fork server imports and the clips are decoded, once; neither must be measured.
        train(folder.with_name("first"), *variant)
    begun = time.monotonic()
    finish(folder, *variant)
    return Reference(outcome(folder), time.monotonic() - begun)


def interrupted(folder: Path, variant: list[str], step: int = 3 * EVERY + 2) -> None:
    """Train in a folder and kill the run at the beginning of a step: by default after its third validation."""
    process = train(folder, *variant, faults={"kill_at_step": {"step": step}})
    if process.poll() != -signal.SIGKILL:
        raise Miss(f"the run that should have been killed ended with {process.poll()}: {last_lines(process.printed())}")


def newest(folder: Path) -> Path | None:
    """Return the checkpoint that kikitori would resume from in this folder."""
    return checkpoints.latest_valid(folder / "checkpoints")


# --- rows -------------------------------------------------------------------------------------------------------------


class Failure(NamedTuple):
    run: int
    why: str
    folder: Path


def rows_of(
    fault: str,
    count: int,
    seed: int,
    folder: Path,
    one: Callable[[int, random.Random, Path], Any],
    note: Callable[[list[Any]], str] = lambda found: "",
) -> dict[str, Any]:
    """Call `one(number, rng, folder)` `count` times, several at once, and count the runs that succeed.

    note: makes the row's note from the values that successful runs returned. The folders of the other runs are kept.
    """
    name = one.__qualname__.split(".")[0]
    runs = range(count) if Settings.only is None else [Settings.only]
    failures: list[Failure] = []
    found: list[Any] = []

    def run(number: int) -> None:
        place = folder / f"{name}-{number}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        try:
            found.append(one(number, random.Random(f"{seed} {name} {number}"), place))
            shutil.rmtree(place, ignore_errors=True)
        except Exception as error:
            why = str(error) if isinstance(error, Miss) else f"{type(error).__name__}: {error}"
            failures.append(Failure(number, why, place))
            print(f"  missed: {why}\n    again: --only {name} --seed {seed} --run {number}   {place}", flush=True)

    with ThreadPoolExecutor(Settings.jobs) as pool:
        list(pool.map(run, runs))
    missed = sorted({f"missed: {failure.why[:150]}" for failure in failures})
    notes = [note(found) if found else "", *missed]
    return {
        "fault": fault,
        "runs": len(runs),
        "good": len(runs) - len(failures),
        "notes": "; ".join(filter(None, notes)),
    }


def variant_of(number: int) -> list[str]:
    return VARIANTS[number % len(VARIANTS)]


def is_plain(number: int) -> bool:
    return number % PLAIN == PLAIN - 1


def wait_until(holds: Callable[[], Any], seconds: float, what: str) -> Any:
    """Return the value of `holds()` once it is true. Raises Miss after `seconds`."""
    end = time.monotonic() + seconds
    while not (value := holds()):
        if time.monotonic() > end:
            raise Miss(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.002)
    return value


@contextmanager
def temporary_folder_elsewhere() -> Iterator[str]:
    """Yield a folder on another file system than the runs."""
    where = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=where) as folder:
        yield folder
