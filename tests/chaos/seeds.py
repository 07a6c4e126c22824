"""One seed, one model, with the default number of threads and a batch whose gradients several threads add up."""

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import (
    SMALL,
    Miss,
    Process,
    differing,
    finish,
    last_lines,
    must_equal,
    outcome,
    reference,
    rows_of,
)
from kills import kill_and_resume

# Of 33,000 numbers or more, the gradient of the decoder's positions is added up by several threads at once.
LARGE = [
    *("data.window=full", "data.num_workers=2", "model.d_model=128", "data.global_batch_size=16"),
    "data.limit.train=24",
]
KINDS = {
    "as configured": LARGE,
    "SpecAugment": [*LARGE, "model.apply_spec_augment=true"],
    "cached encoder": [*LARGE, "model.freeze=encoder", "model.dropout=0", "data.cache_encoder_outputs=true"],
    "two processes": [*LARGE, "trainer=ddp", "trainer.devices=2"],
}
# Seeds as the swept key, since the trials of a sweep must differ.
TRIALS = [*LARGE, "seed=1,2,3,4", "optim.warmup_steps=3"]


@contextmanager
def busy_processor() -> Iterator[None]:
    """Keeps a core busy, as another program on the machine would."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            yield
        finally:
            other.kill()


def kind_of(number: int) -> list[str]:
    return list(KINDS.values())[number % len(KINDS)]


def same_command(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> None:
        finish(place / "run", *kind_of(number))
        must_equal(place / "run", kind_of(number))

    row = "none, but another process keeps a core busy: the same command gives the same model"
    with busy_processor():
        return rows_of(row, count, seed, folder, one, lambda found: f"in turn: {', '.join(KINDS)}")


def killed_next_to_others(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> int:
        kills = kill_and_resume(place / "run", kind_of(number), False, rng)
        must_equal(place / "run", kind_of(number))
        return kills

    row = "kill -9 at a random moment while another process keeps a core busy, then resumed"
    with busy_processor():
        return rows_of(row, count, seed, folder, one, lambda found: f"{sum(found)} kills; {', '.join(KINDS)}; equal")


def trials_at_once(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> None:
        found = []
        for parallel in (1, 2):
            sweep = place / f"sweep-{parallel}"
            line = ["train", "-m", *SMALL, *TRIALS, f"hydra.launcher.parallel={parallel}", f"hydra.sweep.dir={sweep}"]
            process = Process(sweep, line, True, {}, {})
            if code := process.wait(400):
                raise Miss(f"the sweep ended with {code}: {last_lines(process.printed())}")
            trials = sorted(path.parent for path in sweep.glob("*/results.json"))
            found.append({trial.name: outcome(trial) for trial in trials})
        if len(found[0]) != 4 or found[0] != found[1]:
            raise Miss(f"the trials differ: {[name for name in found[0] if found[0][name] != found[1].get(name)]}")
        single = place / "single"
        finish(single, *LARGE, "seed=2", "optim.warmup_steps=3")
        if outcome(single) not in found[0].values():
            raise Miss("a single run with the settings of a trial has another model")

    row = "none: the trials of a sweep, one and two at a time, and a single run with the settings of one are equal"
    return rows_of(row, count, seed, folder, one)


def not_deterministic(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> str:
        reference(LARGE)
        for attempt in range(3):
            finish(place / str(attempt), *LARGE, "trainer.deterministic=false")
            if parts := differing(place / str(attempt), LARGE):
                return ", ".join(parts)
        raise Miss("three runs are equal without deterministic algorithms, so these rows test nothing")

    row = "trainer.deterministic=false: the equality test of the rows above fails"
    return rows_of(row, count, seed, folder, one, lambda found: f"differing: {found[0]}")
