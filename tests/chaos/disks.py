"""Full disks and read-only folders: the old checkpoint stays intact."""

import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

from harness import Miss, Process, finish, last_lines, must_equal, newest, rows_of, steps_of, train, variant_of


def disk_full(count: int, seed: int, folder: Path) -> dict[str, Any]:
    row = "disk full at a save: the old checkpoint is intact, exit code not 0, resumed once there is space"
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / "probe"
    probe.mkdir(exist_ok=True)
    if (why := mount(probe)) is not None:
        return {"fault": row, "runs": 0, "good": 0, "notes": f"skipped: {why}"}
    unmount(probe)

    def one(number: int, rng: random.Random, place: Path) -> None:
        variant, small = variant_of(number), place / "disk"
        small.mkdir()
        mount(small)
        try:
            run = small / "run"
            fault = {"folder": str(small), "save": rng.randrange(2, 7), "leave": rng.randrange(0, 300_000)}
            saved = place / "saved"
            faults = {"note_saves": {"path": str(saved)}, "fill_disk": fault}
            process = train(run, *variant, faults=faults, TMPDIR=str(place))
            check(process, run, saved, "No space left")
            (small / "filler").unlink()
            finish(run, *variant)
            must_equal(run, variant)
        finally:
            unmount(small)

    return rows_of(row, count, seed, folder, one)


def mount(folder: Path) -> str | None:
    """Mount a disk of 8 MB; returns the reason if that fails."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        return "only root can mount a small disk"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, text=True)
    return done.stderr.strip() or "mount failed" if done.returncode else None


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", folder], check=True)


def folder_locked(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> None:
        variant, run, saved = variant_of(number), place / "run", place / "saved"
        lock = {"folder": str(run / "checkpoints"), "save": rng.randrange(2, 7)}
        faults = {"drop_root_permissions": {}, "note_saves": {"path": str(saved)}, "make_read_only": lock}
        process = train(run, *variant, faults=faults)
        check(process, run, saved, "ermission denied")
        (run / "checkpoints").chmod(0o755)
        finish(run, *variant)
        must_equal(run, variant)

    row = "checkpoint folder made read-only: the old checkpoint is intact, exit code not 0"
    return rows_of(row, count, seed, folder, one)


def check(process: Process, run: Path, saved: Path, words: str) -> None:
    """Check that it ended with an error that gives the reason, and that the last checkpoint saved is the newest."""
    if process.poll() in (0, None):
        raise Miss(f"it ended with {process.poll()}")
    steps = list(map(int, saved.read_text().split())) if saved.exists() else []
    if not steps:
        raise Miss(f"it ended before it saved: {last_lines(process.printed())}")
    found = newest(run)
    if found is None:
        raise Miss("no checkpoint is left")
    if (at := steps_of(found)) < max(steps):
        raise Miss(f"the newest checkpoint is of step {at}, although one was saved at {max(steps)}")
    if words not in process.printed():
        raise Miss(f"its message does not contain {words!r}: {last_lines(process.printed())}")
    if "Traceback" in process.printed():
        raise Miss(f"it ended with a traceback: {last_lines(process.printed())}")
