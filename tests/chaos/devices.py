"""Runs of two processes: if one of them fails, both end soon and with an error."""

import random
import signal
import time
from pathlib import Path
from typing import Any

from harness import FULL, Miss, Process, last_lines, results, rows_of, start, wait_until, with_pid

TWO = ["trainer=ddp", "trainer.devices=2", "trainer.strategy.collective_timeout_s=20", "trainer.max_steps=100000"]
END_S = 60.0


def trained_by_two(place: Path, rng: random.Random, **faults: Any) -> tuple[Process, int]:
    """Start a run of two processes; return it once it trains, with the id of its second process."""
    process = start(place / "run", *FULL, *TWO, "validation.every_steps=20", faults=faults)

    def trains() -> bool:
        if (code := process.poll()) is not None:
            raise Miss(f"it ended with {code} before it trained: {last_lines(process.printed())}")
        return any((place / "run" / "checkpoints").glob("*.ckpt"))

    wait_until(trains, 90, "training")
    time.sleep(rng.uniform(0, 1))
    (other,) = [pid for pid in process.descendants() if b"kikitori.cli.worker" in command_line(pid)]
    return process, other


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


def signalled(rng: random.Random, place: Path, number: int, first: bool) -> float:
    """Send a signal to one of two processes; return the seconds until both have ended."""
    process, other = trained_by_two(place, rng)
    begun = time.monotonic()
    with_pid(process.pid if first else other, number)
    try:
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
        return signalled(rng, place, signal.SIGKILL, first=number % 2 == 1)

    return rows_of("kill -9 of one of two processes: both end", count, seed, folder, one, at_most)


def process_terminated(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> float:
        return signalled(rng, place, signal.SIGTERM, first=number % 2 == 1)

    return rows_of("SIGTERM to one of two processes: both end", count, seed, folder, one, at_most)


def process_hangs(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> float:
        return signalled(rng, place, signal.SIGSTOP, first=False)

    row = "one of two processes hangs (SIGSTOP), with a timeout of 20 s: both end"
    return rows_of(row, count, seed, folder, one, at_most)


def process_raises(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> float:
        fault = {"raise_at": {"step": rng.randrange(2, 40)}}
        faults = fault if number % 2 else {"other_ranks": {"faults": fault}}
        process = start(place / "run", *FULL, *TWO, "validation.every_steps=20", faults=faults)
        try:
            wait_until(lambda: "on purpose" in process.printed() or process.poll() is not None, 90, "the error")
            return check(process, time.monotonic())
        finally:
            process.kill()

    return rows_of("one of two processes raises an error: both end", count, seed, folder, one, at_most)
