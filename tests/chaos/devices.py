"""Runs of two processes: if one of them fails, both end soon and with an error."""

import random
import signal
import time
from pathlib import Path
from typing import Any

from harness import FULL, Miss, Process, last_lines, results, rows_of, start, wait_until, with_pid

TWO = ["trainer=ddp", "trainer.devices=2", "trainer.max_steps=100000"]
END_S = 60.0
# It also applies to the start, where one process may import for longer than the other.
TIMEOUT_S = 100
HANG_TIMEOUT_S = 20


def start_two(place: Path, timeout_s: int = TIMEOUT_S, **faults: Any) -> Process:
    timeout = f"trainer.strategy.collective_timeout_s={timeout_s}"
    return start(place / "run", *FULL, *TWO, timeout, "validation.every_steps=20", faults=faults)


def wait_for_training(process: Process, rng: random.Random) -> int:
    """Wait for a random moment after the first checkpoint; return the id of the run's second process."""

    def trains() -> bool:
        if (code := process.poll()) is not None:
            raise Miss(f"it ended with {code} before it trained: {last_lines(process.printed())}")
        return any((process.folder / "checkpoints").glob("*.ckpt"))

    wait_until(trains, TIMEOUT_S, "training")
    time.sleep(rng.uniform(0, 1))
    (other,) = [pid for pid in process.descendants() if b"kikitori.cli.worker" in command_line(pid)]
    return other


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def check(process: Process, begun: float) -> float:
    """Check that all processes end soon and with an error; return the seconds that took."""
    code = process.wait(END_S)
    if code == 0:
        raise Miss("it ended with 0")
    remaining_s = max(1.0, begun + END_S - time.monotonic())
    wait_until(lambda: not process.descendants(), remaining_s, "the end of the other processes")
    if results(process.folder)["status"] != "failed":
        raise Miss(f"results.json has status {results(process.folder)['status']}")
    return time.monotonic() - begun


def signalled(process: Process, rng: random.Random, number: int, first: bool) -> float:
    """Send a signal to one of two processes; return the seconds until both have ended."""
    try:
        other = wait_for_training(process, rng)
        begun = time.monotonic()
        with_pid(process.pid if first else other, number)
        if first and number == signal.SIGKILL:
            process.wait(END_S)
            wait_until(lambda: not process.descendants(), END_S, "the end of the other process")
            return time.monotonic() - begun
        return check(process, begun)
    finally:
        process.kill()


def at_most(found: list[float]) -> str:
    return f"both ended within {max(found):.1f} s"


def process_killed(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> float:
        return signalled(start_two(place), rng, signal.SIGKILL, first=number % 2 == 1)

    return rows_of("kill -9 of one of two processes: both end", count, seed, folder, one, at_most)


def process_terminated(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> float:
        return signalled(start_two(place), rng, signal.SIGTERM, first=number % 2 == 1)

    return rows_of("SIGTERM to one of two processes: both end", count, seed, folder, one, at_most)


def process_hangs(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> float:
        return signalled(start_two(place, HANG_TIMEOUT_S), rng, signal.SIGSTOP, first=False)

    row = f"one of two processes hangs (SIGSTOP), with a timeout of {HANG_TIMEOUT_S} s: both end"
    return rows_of(row, count, seed, folder, one, at_most)


def process_raises(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> float:
        fault = {"raise_at": {"step": rng.randrange(2, 40)}}
        process = start_two(place, **(fault if number % 2 else {"other_ranks": {"faults": fault}}))
        try:
            wait_until(lambda: "on purpose" in process.printed() or process.poll() is not None, TIMEOUT_S, "the error")
            return check(process, time.monotonic())
        finally:
            process.kill()

    return rows_of("one of two processes raises an error: both end", count, seed, folder, one, at_most)
