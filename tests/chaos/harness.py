"""Starts runs of the real command, breaks them, and says whether the end is the one of a run that nothing befell.

A row of the table is a function `name(count, seed, folder) -> dict(fault, runs, good, notes)`. Most hand `rows_of` a
function of one run: it gets its own random numbers and an empty folder, and raises Miss where the promise was not kept.
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
# The smallest training that has all parts of one: several checkpoints, a best one that changes, dropout, a warm-up, an
# epoch that is no whole number of steps, all three splits scored.
SMALL = [
    *("experiment=demo", "model.d_model=16", "model.encoder_layers=1", "model.decoder_layers=1", "model.dropout=0.1"),
    *("data.limit={train: 7, validation: 3, test: 2}", "data.global_batch_size=4", "data.window_edges_s=[1.6,2,2.5]"),
    *("optim.lr=3e-3", "optim.warmup_steps=4", f"trainer.max_steps={STEPS}", f"validation.every_steps={EVERY}"),
    *("generation.max_new_tokens=6", "score.train_clips=2", "score.full_window_clips=2", "logger=none"),
    *("callbacks.checkpoint.monitor=val/loss", "data.num_workers=0"),
]
# What is varied: how clips are heard, and who prepares them.
VARIANTS = [[f"data.window={window}", f"data.num_workers={n}"] for window in ("full", "bucketed") for n in (0, 2)]
FULL = VARIANTS[0]
# One in so many runs is a plain process, as a person starts it; the others are forked with everything imported.
PLAIN = 10
# Nothing here takes a fraction of it: what does, hangs.
PATIENCE_S = 120.0
ENVIRONMENT = {
    "NO_COLOR": "1",
    "OMP_NUM_THREADS": "1",
    "GOMP_SPINCOUNT": "3000",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "CUDA_VISIBLE_DEVICES": "",
    # pyarrow's allocator starts a thread when it is imported, which a fork would lose.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}

Faults = Mapping[str, Any]


class Miss(Exception):  # noqa: N818
    """A promise that was not kept."""


class Settings:
    """Where the harness works, how many runs at once, and which run of a row alone is wanted."""

    folder = Path()
    jobs = 2
    only: int | None = None


def begin(folder: Path, jobs: int = 2, only: int | None = None) -> None:
    """Set the harness up in an empty folder."""
    Settings.folder, Settings.jobs, Settings.only = folder.resolve(), jobs, only
    folder.mkdir(parents=True, exist_ok=True)
    # Others than root read the clips that root decoded.
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
    """What all runs are started with."""
    paths = {"KIKITORI_CACHE": str(Settings.folder / "cache"), "PYTHONPATH": os.pathsep.join([str(SOURCE), str(HERE)])}
    return ENVIRONMENT | paths


class Process:
    """A run that goes on: forked, or a plain command."""

    _starting = threading.Lock()

    def __init__(self, folder: Path, arguments: list[str], plain: bool, faults: Faults, own: dict[str, str]) -> None:
        self.folder, self.output = folder, folder.parent / f"{folder.name}.out"
        # By it the processes that a run started are known, whatever session they are in.
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

    def wait(self, seconds: float = PATIENCE_S) -> int:
        """The exit code; a run that takes longer is killed, and missed its promise."""
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
        """Wait until so many seconds after its start, or until it ends."""
        while self.poll() is None and (left := self.began + seconds - time.monotonic()) > 0:
            time.sleep(min(left, 0.02))

    def send(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it and all that it started."""
        for pid in [self.pid, *self.left()]:
            with_pid(pid, signal.SIGKILL)

    def left(self) -> list[int]:
        """The processes that it started and that still run."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._started(pid)]

    def _started(self, pid: int) -> bool:
        if pid == self.pid:
            return False
        try:
            state, _, _, session = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:4]
            marked = self.mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False
        return state != "Z" and (int(session) == self.pid or marked)

    def said(self) -> str:
        """All that it and the runs of this folder before it wrote to the terminal."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""


def with_pid(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def line(folder: Path, arguments: Sequence[str]) -> list[str]:
    """The words that begin the training of `SMALL` in a folder, or go on with it: the one place that knows them.

    A run that was killed in its first moments left nothing to go on with, and `resume=auto` begins it again.
    """
    if (folder / "results.json").exists():
        return ["train", f"resume={folder}"]
    return ["train", *SMALL, *arguments, f"hydra.run.dir={folder}", "resume=auto"]


def start(folder: Path, *arguments: str, plain: bool = False, faults: Faults | None = None, **own: str) -> Process:
    """Start the training of `SMALL` in a folder, or go on with the one that is there."""
    return Process(folder, line(folder, arguments), plain, faults or {}, own)


def train(folder: Path, *arguments: str, **how: Any) -> Process:
    """A training to its end, however that is."""
    process = start(folder, *arguments, **how)
    process.wait()
    return process


def finish(folder: Path, *arguments: str, **how: Any) -> Process:
    """A training that must end well from here."""
    process = train(folder, *arguments, **how)
    if code := process.poll():
        raise Miss(f"a run that nothing disturbed any more ended with {code}: {last_lines(process.said())}")
    return process


def last_lines(text: str, lines: int = 3) -> str:
    return " | ".join(text.strip().splitlines()[-lines:])


# --- the state of a run -----------------------------------------------------------------------------------------------


def canonical(value: Any, digest: Any) -> None:
    """Feed a value to a digest: equal values give equal bytes, and other values other ones."""
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
    """sha256 of each part of a checkpoint that the next step depends on."""
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    recorder = saved["callbacks"]["Recorder"]
    parts = {
        "step": saved["global_step"],
        "weights": saved["state_dict"],
        "optimizer": saved["optimizer_states"],
        "scheduler": saved["lr_schedulers"],
        "random states": [process["random"] for process in recorder["processes"]],
        "order of clips": [process["order"] for process in recorder["processes"]],
        "losses": [process["losses"] for process in recorder["processes"]],
    }
    return {name: sha256(part) for name, part in parts.items()}


def steps_of(checkpoint: Path) -> int:
    """The steps that a checkpoint holds; it must be whole."""
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"])


def results(folder: Path) -> dict[str, Any]:
    path = folder / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def completed(folder: Path) -> bool:
    """Whether nothing is left to do: a run may be killed after its last word."""
    return results(folder).get("status") == "completed"


def outcome(folder: Path) -> dict[str, str]:
    """sha256 of what a completed run leaves: its last state, its losses and scores, and the model that is kept."""
    kept = results(folder)
    if kept.get("status") != "completed":
        raise Miss(f"results.json says {kept.get('status')}: {kept.get('error')}")
    model = (folder / "model" / "model.safetensors").read_bytes()
    last = newest(folder)
    if last is None:
        raise Miss("a completed run left no checkpoint")
    return state(last) | {
        "history": sha256(kept["history"]),
        "scores": sha256(kept["scores"]),
        "model": hashlib.sha256(model).hexdigest(),
    }


def differing(folder: Path, variant: list[str]) -> list[str]:
    """The parts in which a completed run differs from the one of its variant that nothing befell."""
    mine, whole = outcome(folder), undisturbed(variant).outcome
    return [part for part in whole if mine[part] != whole[part]]


def must_equal(folder: Path, variant: list[str]) -> None:
    if parts := differing(folder, variant):
        raise Miss(f"its {', '.join(parts)} are not those of a run that nothing befell")


def label(variant: tuple[str, ...]) -> str:
    """A folder's name for a variant; Hydra reads an equals sign as its own."""
    return "-".join(word.rpartition("=")[2] for word in variant)


class Undisturbed(NamedTuple):
    """A run that nothing befell: what it leaves, and how long it took forked."""

    outcome: dict[str, str]
    seconds: float


_making = threading.Lock()


def undisturbed(variant: list[str]) -> Undisturbed:
    """The run of a variant that nothing befalls: made once."""
    with _making:
        return _undisturbed(tuple(variant))


@cache
def _undisturbed(variant: tuple[str, ...]) -> Undisturbed:
    folder = Settings.folder / "undisturbed" / label(variant)
    folder.parent.mkdir(exist_ok=True)
    if not (Settings.folder / "cache" / "store").exists():
        # The fork server imports, the clips are decoded: once, and not to be measured.
        train(folder.with_name("first"), *variant)
    begun = time.monotonic()
    finish(folder, *variant)
    return Undisturbed(outcome(folder), time.monotonic() - begun)


def interrupted(folder: Path, variant: list[str], step: int = 3 * EVERY + 2) -> None:
    """A run in a folder that was killed as it began a step: by default after its third validation."""
    process = train(folder, *variant, faults={"kill_at_step": {"step": step}})
    if process.poll() != -signal.SIGKILL:
        raise Miss(f"the run that was to be killed ended with {process.poll()}: {last_lines(process.said())}")


def newest(folder: Path) -> Path | None:
    """The checkpoint that a run of this folder would go on from: production's own choice."""
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
    told: Callable[[list[Any]], str] = lambda found: "",
) -> dict[str, Any]:
    """Run `one(number, random numbers, folder)` so many times, several at once, and count those that kept the promise.

    told: makes the row's note of what the good ones returned. The folders of the others stay.
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
    notes = [told(found) if found else "", *missed]
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
    """What `holds` returns once it is true. Raises Miss where that takes longer than so many seconds."""
    end = time.monotonic() + seconds
    while not (held := holds()):
        if time.monotonic() > end:
            raise Miss(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.002)
    return held


@contextmanager
def temporary_folder_elsewhere() -> Iterator[str]:
    """A folder of another file system than the runs'."""
    where = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=where) as folder:
        yield folder
