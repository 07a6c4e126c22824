"""SIGTERM and SIGINT in every phase of a run: a checkpoint is saved, the exit code is right, and the run resumes."""

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

# The hook that marks the start of a step of each phase.
PHASES = {
    "training": "training_step",
    "validation": "validation_step",
    "scoring before": "predict_step",
    "scoring after": "predict_step",
}
END_S = 30.0


def stop_signals(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> tuple[str, float]:
        variant, run = variant_of(number // 4), place / "run"
        phase = list(PHASES)[number % 4]
        sent = signal.SIGINT if number % 5 == 4 else signal.SIGTERM
        twice = number % 3 == 2
        noted = place / "phases"
        plain = is_plain(number)
        process = start(run, *variant, plain=plain, faults={"note_phases": {"path": str(noted)}})
        steps = at_phase(process, noted, phase, rng)
        begun = time.monotonic()
        process.send(sent)
        if twice:
            time.sleep(rng.uniform(0, 0.2))
            process.send(sent)
        code = process.wait(END_S)
        took = time.monotonic() - begun
        if code == 0 and completed(run):
            return phase, took
        expected = {128 + sent, -sent} if plain and sent == signal.SIGINT else {128 + sent}
        if code not in expected:
            raise Miss(f"{sent.name} in {phase}: it ended with {code}: {last_lines(process.printed())}")
        written = results(run)
        if (written.get("status"), written.get("error")) != ("failed", f"stopped by {sent.name}"):
            raise Miss(f"{sent.name} in {phase}: results.json has {written.get('status')}, {written.get('error')}")
        if phase in ("training", "validation"):
            # An interrupted validation is repeated, with the step before it.
            check_saved(run, steps - (phase == "validation"))
        wait_until(lambda: not process.descendants(), 20, "the end of its processes")
        finish(run, *variant, plain=plain)
        must_equal(run, variant)
        return phase, took

    def note(found: list[tuple[str, float]]) -> str:
        return f"ended within {max(took for _, took in found):.1f} s; resumed, equal"

    row = "SIGTERM or SIGINT during training, validation or scoring, once or twice within 200 ms"
    return rows_of(f"{row}: checkpoint saved, exit code 143 or 130", count, seed, folder, one, note)


def at_phase(process: Process, noted: Path, phase: str, rng: random.Random) -> int:
    """Wait for a random moment of a phase; return the step that training has reached then."""
    kind, after = PHASES[phase], STEPS if phase == "scoring after" else 0
    step = {"training": rng.randrange(1, STEPS), "validation": EVERY * rng.randrange(1, STEPS // EVERY)}.get(
        phase, after
    )

    def there() -> str | None:
        if process.poll() is not None:
            raise Miss(f"it ended with {process.poll()} before {phase}: {last_lines(process.printed())}")
        lines = noted.read_text().splitlines() if noted.exists() else []
        return next((line for line in lines if line == f"{kind} {step}"), None)

    wait_until(there, 60, phase)
    time.sleep(rng.uniform(0, 0.02))
    return step


def check_saved(run: Path, step: int) -> None:
    """Check that a checkpoint contains the steps that were complete when the signal was sent."""
    found = newest(run)
    at = steps_of(found) if found else 0
    if at < step:
        raise Miss(f"step {step} was complete, but the newest checkpoint is of step {at}")
