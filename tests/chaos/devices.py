"""Two processes that train one run: whatever befalls one of them ends both, soon and with an error."""

import random
import signal
import time
from pathlib import Path
from typing import Any

from harness import FULL, Miss, Process, last_lines, results, rows_of, start, wait_until, with_pid

TWO = ["trainer=ddp", "trainer.devices=2", "trainer.strategy.collective_timeout_s=20", "trainer.max_steps=100000"]
END_S = 60.0


def trained_by_two(place: Path, rng: random.Random, **faults: Any) -> tuple[Process, int]:
    """A run of two processes amid its training, and the id of its second process."""
    process = start(place / "run", *FULL, *TWO, "validation.every_steps=20", faults=faults)

    def trains() -> bool:
        if (code := process.poll()) is not None:
            raise Miss(f"it ended with {code} before it trained: {last_lines(process.said())}")
        return any((place / "run" / "checkpoints").glob("*.ckpt"))

    wait_until(trains, 90, "training")
    time.sleep(rng.uniform(0, 1))
    (other,) = [pid for pid in process.left() if b"kikitori.cli.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return process, other


def check(process: Process, begun: float) -> float:
    """All processes are gone soon, with an error: how long it took."""
    code = process.wait(END_S)
    if code == 0:
        raise Miss("it ended with 0")
    wait_until(lambda: not process.left(), max(1.0, begun + END_S - time.monotonic()), "the other processes end")
    if results(process.folder)["status"] != "failed":
        raise Miss(f"results.json says {results(process.folder)['status']}")
    return time.monotonic() - begun


def signalled(what: str, number: int, rng: random.Random, place: Path, told: int, first: bool) -> float:
    process, other = trained_by_two(place, rng)
    begun = time.monotonic()
    with_pid(process.pid if first else other, told)
    try:
        if first and told == signal.SIGKILL:
            process.wait(END_S)
            wait_until(lambda: not process.left(), END_S, "the other process ends")
            return time.monotonic() - begun
        return check(process, begun)
    finally:
        process.kill()


def at_most(found: list[float]) -> str:
    return f"at most {max(found):.1f} s until all were gone"


def process_killed(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> float:
        return signalled("killed", number, rng, place, signal.SIGKILL, first=number % 2 == 1)

    return rows_of("one of two processes killed -9: both gone", count, seed, folder, one, at_most)


def process_told_to_stop(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> float:
        return signalled("told", number, rng, place, signal.SIGTERM, first=number % 2 == 1)

    return rows_of("SIGTERM to one of two processes: both gone", count, seed, folder, one, at_most)


def process_stopped(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> float:
        return signalled("stopped", number, rng, place, signal.SIGSTOP, first=False)

    row = "one of two processes hangs (SIGSTOP), with a timeout of 20 s: both gone"
    return rows_of(row, count, seed, folder, one, at_most)


def process_raises(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> float:
        fault = {"raise_at": {"step": rng.randrange(2, 40)}}
        faults = fault if number % 2 else {"other_ranks": {"faults": fault}}
        process = start(place / "run", *FULL, *TWO, "validation.every_steps=20", faults=faults)
        try:
            wait_until(lambda: "on purpose" in process.said() or process.poll() is not None, 90, "the error")
            return check(process, time.monotonic())
        finally:
            process.kill()

    return rows_of("one of two processes raises: both gone", count, seed, folder, one, at_most)
