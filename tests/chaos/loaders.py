"""A loader's process that is killed, and a loss that is no number."""

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
        said = process.said()
        if "killed" not in said.lower() or "loader" not in said.lower():
            raise Miss(f"it ended with {code} and does not say why: {last_lines(said)}")
        if "Traceback" in said:
            raise Miss(f"it ended with a traceback: {last_lines(said)}")
        finish(run, *variant)
        must_equal(run, variant)

    row = "a loader's process killed -9: an error that says so, gone on with"
    return rows_of(row, count, seed, folder, one)


def loss_not_finite(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> None:
        variant, run = variant_of(number), place / "run"
        step = rng.randrange(2, STEPS + 1)
        process = train(run, *variant, faults={"nan_at": {"step": step}})
        if process.poll() != 1:
            raise Miss(f"it ended with {process.poll()}")
        if f"step {step}" not in process.said() or ".mp3" not in process.said():
            raise Miss(f"it does not name step {step} and its clips: {last_lines(process.said())}")
        for path in run.glob("checkpoints/*.ckpt"):
            saved = torch.load(path, map_location="cpu", weights_only=True)
            if saved["global_step"] >= step or not all(bool(w.isfinite().all()) for w in saved["state_dict"].values()):
                raise Miss(f"{path.name} is of step {saved['global_step']}, and step {step} had no finite loss")
        finish(run, *variant)
        must_equal(run, variant)

    row = "a loss that is no number: stopped at that step, which is named with its clips; no checkpoint of it"
    return rows_of(row, count, seed, folder, one)
