"""Untrusted input: runs the security tests again and counts them.

Their cases are fixed, so count and seed are ignored: each row counts all cases of its files.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

TESTS = Path(__file__).parents[1]


def _count(fault: str, folder: Path, *files: str) -> dict[str, Any]:
    """Run the tests of some files in a separate process, and count them."""
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / "report.xml"
    # Without this run's cache.
    kept = {key: value for key, value in os.environ.items() if not key.startswith("KIKITORI_")}
    line = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", f"--basetemp={folder / 'tests'}"]
    done = subprocess.run([*line, *(str(TESTS / file) for file in files)], capture_output=True, text=True, env=kept)
    if not report.exists():
        return {"fault": fault, "runs": 1, "good": 0, "notes": done.stdout[-2000:] + done.stderr[-2000:]}
    cases = list(ElementTree.parse(report).iter("testcase"))
    skipped = sum(case.find("skipped") is not None for case in cases)
    bad = [c.get("name") for c in cases if c.find("failure") is not None or c.find("error") is not None]
    notes = [f"{skipped} skipped"] * bool(skipped) + [f"missed: {name}" for name in bad]
    runs = len(cases) - skipped
    return {"fault": fault, "runs": runs, "good": runs - len(bad), "notes": "; ".join(notes)}


def _row(fault: str, *files: str) -> Callable[[int, int, Path], dict[str, Any]]:
    """The row that counts the tests of some files."""

    def row(count: int, seed: int, folder: Path) -> dict[str, Any]:
        return _count(fault, folder, *files)

    return row


archives = _row(
    "hostile archives: nothing is written outside the folder or without limit",
    "corpora/test_archive.py",
)
paths_of_tables = _row(
    "hostile paths in a table: only files in clips/ are read, none blocks, each is counted",
    "security/test_hostile_paths.py",
)
targets = _row(
    "foreign `_target_` values and other calls through Hydra: refused, not called",
    *("security/test_targets.py", "security/test_hostile_configurations.py", "cli/test_limits.py"),
)
pickles = _row(
    "pickles in place of input files: not executed, but reported or skipped",
    *("security/test_untrusted_files.py", "security/test_hostile.py"),
)
secrets = _row(
    "secrets and speakers: in no file and no output of runs, resumed or failing runs and comparisons",
    "security/test_secrets.py",
)
outputs = _row(
    "hostile texts: terminal, log, JSON, CSV, Markdown and plots show them as text",
    "security/test_output.py",
)
networks = _row(
    "a run of two processes: no socket beyond the loopback interface, no pickle between them",
    "security/test_network.py",
)
models = _row(
    "changed configurations of a model: an error or a model that works, and nothing is written",
    "model/test_limits.py",
)
run_folders = _row(
    "hostile run folders and checkpoints: unreadable or refused, nothing outside of them written or deleted",
    *("security/test_hostile_runs.py", "security/test_hostile_checkpoints.py", "runtime/test_files.py"),
)
