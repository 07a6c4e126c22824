"""Checkpoints that a disk, a copy or a clock has spoilt: passed over, named, and never loaded in silence."""

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
            raise Miss(f"{path.name}, {kind}, is taken for {before}")
        process = finish(run, *variant)
        said = process.said()
        warned = [line for line in said.splitlines() if path.name in line and "resuming from" not in line]
        if not warned:
            raise Miss(f"{path.name}, {kind}, is not named: {last_lines(said)}")
        if f"resuming from {before.name}" not in said:
            raise Miss(f"not gone on from {before.name}")
        must_equal(run, variant)
        return kind

    def told(found: list[str]) -> str:
        kinds = sorted({kind.split(" at ")[0] for kind in found})
        return ", ".join(f"{sum(k.startswith(kind) for k in found)} {kind}" for kind in kinds)

    row = "the newest checkpoint truncated, or one byte of it flipped: the one before is taken, with a warning"
    return rows_of(row, count, seed, folder, one, told)


def damage(path: Path, rng: random.Random, number: int) -> str:
    """Spoil a file; says how."""
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
        right = newest(run)
        assert right is not None
        # The newest looks like the oldest, and all of them like the future.
        paths = sorted(run.glob("checkpoints/*"), key=lambda path: path.name.startswith(right.name))
        for age, path in enumerate(paths):
            time = 4e9 - 1000 * age - rng.random()
            os.utime(path, (time, time))
        if newest(run) != right:
            raise Miss(f"{newest(run)} is taken for the newest, which is {right.name}")
        process = finish(run, *variant)
        if f"resuming from {right.name}" not in process.said():
            raise Miss(f"not gone on from {right.name}")
        must_equal(run, variant)

    return rows_of("a clock set back between checkpoints: the newest is that of most steps", count, seed, folder, one)


def folder_moved(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> None:
        variant = variant_of(number)
        interrupted(place / "before", variant)
        (place / "before").rename(place / "after")
        finish(place / "after", *variant)
        must_equal(place / "after", variant)

    return rows_of("a stopped run's folder moved, and gone on with there", count, seed, folder, one)
