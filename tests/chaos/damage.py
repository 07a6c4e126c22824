"""Checkpoints damaged by a disk, a copy or a clock: skipped with a warning that names them."""

import os
import random
from pathlib import Path
from typing import Any

from harness import Miss, finish, interrupted, last_lines, must_equal, newest, rows_of, variant_of


def damaged_checkpoint(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> str:
        variant, run = variant_of(number), place / "run"
        interrupted(run, variant)
        path = newest(run)
        assert path is not None
        kind = damage(path, rng, number)
        before = newest(run)
        if before is None or before == path:
            raise Miss(f"{path.name}, {kind}, is accepted: {before}")
        process = finish(run, *variant)
        printed = process.printed()
        warned = [line for line in printed.splitlines() if path.name in line and "resuming from" not in line]
        if not warned:
            raise Miss(f"{path.name}, {kind}, is not named: {last_lines(printed)}")
        if f"resuming from {before.name}" not in printed:
            raise Miss(f"not resumed from {before.name}")
        must_equal(run, variant)
        return kind

    def note(found: list[str]) -> str:
        kinds = sorted({kind.split(" at ")[0] for kind in found})
        return ", ".join(f"{sum(k.startswith(kind) for k in found)} {kind}" for kind in kinds)

    row = "newest checkpoint truncated or one bit of it flipped: the one before is used, with a warning"
    return rows_of(row, count, seed, folder, one, note)


def damage(path: Path, rng: random.Random, number: int) -> str:
    """Damage a file; returns a description of the damage."""
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content))
    if number % 2:
        content[at] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        return f"a bit flipped at {at}"
    path.write_bytes(content[:at])
    return f"truncated at {at}"


def clock_set_back(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> None:
        variant, run = variant_of(number), place / "run"
        interrupted(run, variant)
        expected = newest(run)
        assert expected is not None
        # By its time stamp the newest is the oldest, and all lie in the future.
        paths = sorted(run.glob("checkpoints/*"), key=lambda path: path.name.startswith(expected.name))
        for age, path in enumerate(paths):
            time = 4e9 - 1000 * age - rng.random()
            os.utime(path, (time, time))
        if newest(run) != expected:
            raise Miss(f"{newest(run)} is used as the newest, which is {expected.name}")
        process = finish(run, *variant)
        if f"resuming from {expected.name}" not in process.printed():
            raise Miss(f"not resumed from {expected.name}")
        must_equal(run, variant)

    row = "clock set back between checkpoints: the newest is the one with the most steps"
    return rows_of(row, count, seed, folder, one)


def folder_moved(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> None:
        variant = variant_of(number)
        interrupted(place / "before", variant)
        (place / "before").rename(place / "after")
        finish(place / "after", *variant)
        must_equal(place / "after", variant)

    return rows_of("folder of an interrupted run moved, then resumed there", count, seed, folder, one)
