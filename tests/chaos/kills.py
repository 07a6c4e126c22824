"""kill -9 at any moment and during a save, and a check that the equality test can fail."""

import random
import signal
from pathlib import Path
from typing import Any

from harness import (
    EVERY,
    STEPS,
    VARIANTS,
    Miss,
    completed,
    differing,
    finish,
    interrupted,
    is_plain,
    last_lines,
    must_equal,
    newest,
    reference,
    rows_of,
    start,
    steps_of,
    temporary_folder_elsewhere,
    train,
    variant_of,
    wait_until,
)

# A plain process takes longer, because it imports everything.
IMPORT_S = 3.5
# The most kills of one run.
KILLS = 3


def forked_like_plain(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Check the harness itself: a forked run equals a plain one."""

    def one(number: int, rng: random.Random, place: Path) -> None:
        variant = variant_of(number)
        finish(place / "run", *variant, plain=True)
        must_equal(place / "run", variant)

    return rows_of("none: plain commands compared with the forked runs of this test", count, seed, folder, one)


def killed_at_any_moment(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> int:
        kills = kill_and_resume(place / "run", variant_of(number), is_plain(number), rng)
        must_equal(place / "run", variant_of(number))
        return kills

    note = "{} kills; weights, optimizer, scheduler, random states, order of clips, history, scores and model equal"
    row = "kill -9 at a random moment, up to three times, then resumed"
    return rows_of(row, count, seed, folder, one, lambda found: note.format(sum(found)))


def kill_and_resume(run: Path, variant: list[str], plain: bool, rng: random.Random) -> int:
    """Kill a run at random moments and resume it until it is complete; returns how often it was killed."""
    seconds, started, kills = reference(variant).seconds + IMPORT_S * plain, [], 0
    for _ in range(KILLS):
        process = start(run, *variant, plain=plain)
        started.append(process)
        process.until(rng.uniform(0, seconds))
        if process.poll() is not None:
            break
        process.send(signal.SIGKILL)
        process.wait()
        kills += 1
        if completed(run):
            break
    else:
        process = finish(run, *variant, plain=plain)
    if process.poll() and not completed(run):
        raise Miss(f"a run ended with {process.poll()} before it was killed: {last_lines(process.printed())}")
    wait_until(lambda: not any(process.descendants() for process in started), 20, "the end of its processes")
    return kills


def killed_in_a_save(count: int, seed: int, folder: Path) -> dict[str, Any]:
    calls = [calls_of_saves(folder / f"counted-{number}", variant) for number, variant in enumerate(VARIANTS)]

    def one(number: int, rng: random.Random, place: Path) -> str:
        variant = variant_of(number)
        calls_of_each = calls[VARIANTS.index(variant)]
        save = rng.randrange(1, len(calls_of_each) + 1)
        inside = {"save": save, "call": rng.randrange(1, calls_of_each[save - 1] + 1), "before": rng.random() < 0.5}
        by_clock = {"save": save, "microseconds": rng.randrange(10_000)}
        fault: dict[str, Any] = {"kill_after": by_clock} if number % 2 else {"kill_in_save": inside}
        saved = place / "saved"
        with temporary_folder_elsewhere() as elsewhere:
            environment = {"TMPDIR": elsewhere} if number % 4 > 1 else {}
            faults = {"note_saves": {"path": str(saved)}, **fault}
            process = train(place / "run", *variant, faults=faults, **environment)
            if process.poll() == 0:
                # Its saves took fewer calls than the counted ones, so it was not killed.
                return "not hit"
            if process.poll() != -signal.SIGKILL:
                raise Miss(f"the run that should have been killed ended with {process.poll()}")
            saved_step = max(map(int, saved.read_text().split()), default=0) if saved.exists() else 0
            check_newest(place / "run", saved_step)
            finish(place / "run", *variant, **environment)
        must_equal(place / "run", variant)
        return "killed"

    def note(found: list[str]) -> str:
        where = f"at one of about {max(calls[0])} file operations of about {len(calls[0])} saves, or within 10 ms"
        return f"{found.count('killed')} killed {where}; {found.count('not hit')} finished before the kill"

    row = "kill -9 during a save, half of the runs with TMPDIR on another disk"
    return rows_of(row, count, seed, folder, one, note)


def calls_of_saves(folder: Path, variant: list[str]) -> list[int]:
    """Count the file operations of each save of an uninterrupted run."""
    folder.mkdir(parents=True, exist_ok=True)
    counted = folder / "calls"
    fault = {"save": 0, "call": 0, "before": True, "count": str(counted)}
    finish(folder / "run", *variant, faults={"kill_in_save": fault})
    return list(map(int, counted.read_text().split()))


def check_newest(folder: Path, step: int) -> None:
    """Check that the newest checkpoint is intact and no older than the last one saved."""
    found = newest(folder)
    if found is None and step > 0:
        raise Miss(f"no checkpoint is left, although one was saved at step {step}")
    if found is not None and (at := steps_of(found)) < step:
        raise Miss(f"{found.name} is of step {at}, although one was saved at step {step}")


def negative_controls(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Check that the equality test fails if a state is not restored."""
    forgotten = {
        "forget_random_states": {"random states", "weights"},
        "forget_position": {"order of clips", "weights"},
        "forget_scheduler": {"scheduler", "weights"},
    }

    def one(number: int, rng: random.Random, place: Path) -> str:
        (fault, parts), variant = list(forgotten.items())[number % 3], VARIANTS[number // 3 % len(VARIANTS)]
        interrupted(place / "run", variant, rng.randrange(2 * EVERY + 1, STEPS - EVERY))
        finish(place / "run", *variant, faults={fault: {}})
        found = set(differing(place / "run", variant))
        if not parts <= found:
            raise Miss(f"{fault}: only {sorted(found)} differ")
        return fault.removeprefix("forget_").replace("_", " ")

    row = "random states, position in the data or scheduler not restored: the equality test fails"
    return rows_of(row, count, seed, folder, one, lambda found: ", ".join(sorted(set(found))))
