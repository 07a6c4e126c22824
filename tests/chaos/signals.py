"""SIGTERM and SIGINT, in every phase of a run: saved, with the exit code that says so, and gone on with."""

import random
import signal
import time
from pathlib import Path
from typing import Any

from harness import (
    EVERY,
    STEPS,
    Miss,
    Process,
    completed,
    finish,
    is_plain,
    last_lines,
    must_equal,
    newest,
    results,
    rows_of,
    start,
    steps_of,
    variant_of,
    wait_until,
)

# What notes the begin of a step of each phase, and how often it is noted before.
PHASES = {
    "training": "training_step",
    "validation": "validation_step",
    "scoring before": "predict_step",
    "scoring after": "predict_step",
}
END_S = 30.0


def told_to_stop(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> tuple[str, float]:
        variant, run = variant_of(number // 4), place / "run"
        phase = list(PHASES)[number % 4]
        told = signal.SIGINT if number % 5 == 4 else signal.SIGTERM
        twice = number % 3 == 2
        noted = place / "phases"
        plain = is_plain(number)
        process = start(run, *variant, plain=plain, faults={"note_phases": {"path": str(noted)}})
        steps = at_phase(process, noted, phase, rng)
        begun = time.monotonic()
        process.send(told)
        if twice:
            time.sleep(rng.uniform(0, 0.2))
            process.send(told)
        code = process.wait(END_S)
        took = time.monotonic() - begun
        if code == 0 and completed(run):
            return phase, took
        expected = {128 + told, -told} if plain and told == signal.SIGINT else {128 + told}
        if code not in expected:
            raise Miss(f"{told.name} in {phase}: it ended with {code}: {last_lines(process.said())}")
        kept = results(run)
        if (kept.get("status"), kept.get("error")) != ("failed", f"stopped by {told.name}"):
            raise Miss(f"{told.name} in {phase}: results.json says {kept.get('status')}, {kept.get('error')}")
        if phase in ("training", "validation"):
            # A validation is begun again with the step before it.
            check_saved(run, steps - (phase == "validation"))
        wait_until(lambda: not process.left(), 20, "what it started ends")
        finish(run, *variant, plain=plain)
        must_equal(run, variant)
        return phase, took

    def told(found: list[tuple[str, float]]) -> str:
        return f"at most {max(took for _, took in found):.1f} s to the end; gone on with, equal"

    row = "SIGTERM (or SIGINT) in training, validation, scoring before and after, once or twice within 200 ms"
    return rows_of(f"{row}: saved, exit 143 (130)", count, seed, folder, one, told)


def at_phase(process: Process, noted: Path, phase: str, rng: random.Random) -> int:
    """Wait for a random moment of a phase; the step that training has reached then."""
    kind, after = PHASES[phase], STEPS if phase == "scoring after" else 0
    step = {"training": rng.randrange(1, STEPS), "validation": EVERY * rng.randrange(1, STEPS // EVERY)}.get(
        phase, after
    )

    def there() -> str | None:
        if process.poll() is not None:
            raise Miss(f"it ended with {process.poll()} before {phase}: {last_lines(process.said())}")
        lines = noted.read_text().splitlines() if noted.exists() else []
        return next((line for line in lines if line == f"{kind} {step}"), None)

    wait_until(there, 60, phase)
    time.sleep(rng.uniform(0, 0.02))
    return step


def check_saved(run: Path, step: int) -> None:
    """A checkpoint is there of the steps that were done when the signal came."""
    found = newest(run)
    at = steps_of(found) if found else 0
    if at < step:
        raise Miss(f"step {step} was done, and the newest checkpoint is of step {at}")
