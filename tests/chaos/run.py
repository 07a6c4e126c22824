"""Breaks the real `kikitori train` in every way that is known, counts what came of it, and prints the table.

    python tests/chaos/run.py                    the whole, hours
    python tests/chaos/run.py --short            a few of each, minutes
    python tests/chaos/run.py --only killed_at_any_moment --seed 7 --run 12 --keep    one run again

`make chaos` runs the whole and writes the table into docs/reliability.md.
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
    # What the tests share.
    sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import harness

HERE = Path(__file__).parent
# Where what the tests share is, too.
sys.path.append(str(HERE.parent))
TABLE = HERE.parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- chaos: begin -->", "<!-- chaos: end -->"
MODULES = ["kills", "damage", "signals", "disks", "devices", "loaders", "tracker", "media", "attacks"]
# How often each is done, in short and in long; others once and 20 times.
COUNTS = {
    "forked_like_plain": (1, 8),
    "killed_at_any_moment": (2, 200),
    "killed_in_a_save": (2, 200),
    "negative_controls": (3, 3),
    "damaged_checkpoint": (2, 50),
    "builds_at_once": (2, 50),
    "builds_killed": (5, 100),
    "bad_audio_and_text": (20, 20),
    "fuzzed_media": (60, 500),
    "tracker_gone": (2, 10),
    "tracker_gone_pairs": (1, 5),
    "told_to_stop": (4, 100),
}

Row = Callable[[int, int, Path], dict[str, Any]]


def rows() -> dict[str, Row]:
    """Every row of the table: the public functions of (count, seed, folder) of the modules that there are."""
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
    lines = ["| fault | kept its promise | notes | minutes |", "| --- | ---: | --- | ---: |"]
    for row in done:
        kept = f"{row['good']} of {row['runs']}" + ("" if row["good"] == row["runs"] else " **missed**")
        notes = row.get("notes", "").replace("|", "/").replace("\n", " ")
        lines.append(f"| {row['fault']} | {kept} | {notes} | {row['seconds'] / 60:.1f} |")
    return "\n".join(lines)


def write(text: str) -> None:
    """Put the table between its markers."""
    page = TABLE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    TABLE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a few runs of each row")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="these rows alone")
    parser.add_argument("--count", type=int, help="so many runs of each row")
    parser.add_argument("--run", type=int, help="this run of the row alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--folder", type=Path, help="where runs land; a new temporary one")
    parser.add_argument("--keep", action="store_true", help="keep the folder, however it ends")
    parser.add_argument("--write", action="store_true", help=f"put the table into docs/{TABLE.name}")
    chosen = parser.parse_args()
    every = rows()
    if unknown := set(chosen.only) - set(every):
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    folder = (chosen.folder or Path(tempfile.mkdtemp(prefix="kikitori-chaos-"))).resolve()
    # What production says of damaged checkpoints is wanted from the runs, not from whoever looks at them here.
    logging.getLogger("kikitori").setLevel(logging.ERROR)
    harness.begin(folder, chosen.jobs, chosen.run)
    print(f"chaos: seed {chosen.seed}, {chosen.jobs} runs at once, in {folder}", flush=True)
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
