"""Interrupts and damages the real `kikitori train` in many ways, counts the runs that recover, prints a table.

    python tests/chaos/run.py                    all rows, hours
    python tests/chaos/run.py --short            a few runs of each row, minutes
    python tests/chaos/run.py --only killed_at_any_moment --seed 7 --run 12 --keep    one run again

`make chaos` runs all rows and writes the table into docs/reliability.md.
"""

import argparse
import importlib
import inspect
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # pytest has this from its configuration.
    sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import harness

from kikitori.runs.record import git_state

TABLE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- chaos: begin -->", "<!-- chaos: end -->"
MODULES = ["kills", "seeds", "damage", "signals", "disks", "devices", "loaders", "tracker", "media", "attacks"]
# Runs of a row with --short and without; 1 and 20 where not listed.
COUNTS = {
    "forked_like_plain": (1, 8),
    "killed_at_any_moment": (2, 200),
    "killed_in_a_save": (2, 200),
    "negative_controls": (3, 3),
    "trials_at_once": (1, 2),
    "not_deterministic": (1, 1),
    "damaged_checkpoint": (2, 50),
    "builds_at_once": (2, 50),
    "builds_killed": (5, 100),
    "bad_audio_and_text": (20, 20),
    "fuzzed_media": (60, 500),
    "tracker_gone": (2, 10),
    "tracker_gone_pairs": (1, 5),
    "stop_signals": (4, 100),
}

Row = Callable[[int, int, Path], dict[str, Any]]


def rows() -> dict[str, Row]:
    """Return all rows of the table: the public functions of (count, seed, folder) in the modules."""
    found = {}
    for name in MODULES:
        if not find_spec(name):
            continue
        for key, function in vars(importlib.import_module(name)).items():
            own = inspect.isfunction(function) and function.__module__ == name and not key.startswith("_")
            if not own:
                continue
            signature = inspect.signature(function)
            if list(signature.parameters) == ["count", "seed", "folder"] and signature.return_annotation is not None:
                found[key] = function
    return found


def table(done: list[dict[str, Any]]) -> str:
    lines = ["| fault | passed | notes | minutes | commit |", "| --- | ---: | --- | ---: | --- |"]
    commit = (git_state() or {}).get("commit", "")[:7]
    for row in done:
        passed = f"{row['good']} of {row['runs']}" + ("" if row["good"] == row["runs"] else " **missed**")
        notes = row.get("notes", "").replace("|", "/").replace("\n", " ")
        lines.append(f"| {row['fault']} | {passed} | {notes} | {row['seconds'] / 60:.1f} | {commit} |")
    return "\n".join(lines)


def write(text: str) -> None:
    """Replace the text between the markers."""
    page = TABLE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    TABLE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a few runs of each row")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="only these rows")
    parser.add_argument("--count", type=int, help="runs of each row")
    parser.add_argument("--run", type=int, help="only this run of each row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="concurrent runs")
    parser.add_argument("--folder", type=Path, help="folder of the runs; default: a new temporary one")
    parser.add_argument("--keep", action="store_true", help="keep the folder even if nothing is missed")
    parser.add_argument("--write", action="store_true", help=f"write the table to docs/{TABLE.name}")
    chosen = parser.parse_args()
    every = rows()
    if unknown := set(chosen.only) - set(every):
        parser.error(f"unknown rows: {', '.join(sorted(unknown))}; choose from {', '.join(every)}")
    folder = (chosen.folder or Path(tempfile.mkdtemp(prefix="kikitori-chaos-"))).resolve()
    # Warnings about damaged checkpoints are expected from the runs, not from the checks in this process.
    logging.getLogger("kikitori").setLevel(logging.ERROR)
    harness.set_up(folder, chosen.jobs, chosen.run)
    print(f"chaos: seed {chosen.seed}, {chosen.jobs} concurrent runs, in {folder}", flush=True)
    done = []
    for name, function in every.items():
        if chosen.only and name not in chosen.only:
            continue
        count = chosen.count or COUNTS.get(name, (1, 20))[not chosen.short]
        print(f"{name} ...", flush=True)
        begun = time.monotonic()
        row = function(count, chosen.seed, folder / name)
        row["seconds"] = time.monotonic() - begun
        done.append(row)
        print(f"{name}: {row['good']} of {row['runs']}, {row['seconds']:.0f} s, seed {chosen.seed}. {row['fault']}")
        print(f"  {row['notes']}", flush=True)
    text = f"{table(done)}\n\nSeed {chosen.seed}."
    print(text)
    if chosen.write:
        write(text)
    missed = any(row["good"] < row["runs"] for row in done)
    if not missed and not chosen.keep and not chosen.folder:
        shutil.rmtree(folder)
    sys.exit(missed)


if __name__ == "__main__":
    main()
