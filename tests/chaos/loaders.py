"""Killed data loader workers and non-finite losses."""

import random
import signal
from pathlib import Path
from typing import Any

import torch
from harness import (
    STEPS,
    VARIANTS,
    Miss,
    finish,
    last_lines,
    must_equal,
    rows_of,
    start,
    train,
    variant_of,
    wait_until,
    with_pid,
)


def loader_killed(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> None:
        variant, run, noted = VARIANTS[1 + number % 2 * 2], place / "run", place / "phases"
        faults = {"note_phases": {"path": str(noted)}, "slow_training": {"seconds": 0.02}}
        process = start(run, *variant, faults=faults)
        step = rng.randrange(1, STEPS - 8)
        wait_until(lambda: noted.exists() and f"training_step {step}" in noted.read_text().splitlines(), 60, "training")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        with_pid(int(rng.choice(children)), signal.SIGKILL)
        if (code := process.wait()) == 0:
            raise Miss("it ended with 0")
        printed = last_lines(process.printed())
        if "DataLoader worker" not in printed or "killed" not in printed or "resume=" not in printed:
            raise Miss(f"it ended with {code} and its message does not name the worker: {printed}")
        finish(run, *variant)
        must_equal(run, variant)

    row = "kill -9 of a data loader worker: the error names it, then resumed"
    return rows_of(row, count, seed, folder, one)


def loss_not_finite(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> None:
        variant, run = variant_of(number), place / "run"
        step = rng.randrange(2, STEPS + 1)
        process = train(run, *variant, faults={"nan_at": {"step": step}})
        if process.poll() != 1:
            raise Miss(f"it ended with {process.poll()}")
        if f"step {step}" not in process.printed() or ".mp3" not in process.printed():
            raise Miss(f"it does not name step {step} and its clips: {last_lines(process.printed())}")
        for path in run.glob("checkpoints/*.ckpt"):
            saved = torch.load(path, map_location="cpu", weights_only=True)
            if saved["global_step"] >= step or not all(bool(w.isfinite().all()) for w in saved["state_dict"].values()):
                raise Miss(f"{path.name} is of step {saved['global_step']}; the loss of step {step} was not finite")
        finish(run, *variant)
        must_equal(run, variant)

    row = "non-finite loss: training stops at that step and names it and its clips; no checkpoint contains it"
    return rows_of(row, count, seed, folder, one)
