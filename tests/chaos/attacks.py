"""Untrusted input: runs the security tests again and counts them.

Their cases are fixed, so count and seed are ignored: each row counts all cases of its files.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

TESTS = Path(__file__).parents[1]


def archives(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Links, devices, pipes, paths that lead outside, archive bombs, look-alike names, truncated downloads."""
    fault = "hostile archives: nothing is written outside the folder or without limit"
    return _row(fault, folder, "corpora/test_archive.py")


def paths_of_tables(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Paths in a table that are not recordings in its folder."""
    fault = "hostile paths in a table: only files in clips/ are read, none blocks, each is counted"
    return _row(fault, folder, "security/test_hostile_paths.py")


def targets(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Callables in a configuration, from the command line and from files."""
    fault = "foreign `_target_` values and other calls through Hydra: refused, not called"
    generated = ("security/test_hostile_configurations.py", "cli/test_limits.py")
    return _row(fault, folder, "security/test_targets.py", *generated)


def pickles(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Pickles and modules in place of every file that kikitori reads."""
    fault = "pickles in place of input files: not executed, but reported or skipped"
    return _row(fault, folder, "security/test_untrusted_files.py", "security/test_hostile.py")


def secrets(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Canaries in the environment, and the speakers of the corpus."""
    fault = "secrets and speakers: in no file and no output of runs, resumed or failing runs and comparisons"
    return _row(fault, folder, "security/test_secrets.py")


def outputs(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Escape sequences, formulas and markup in the texts of runs, corpora and file names."""
    fault = "hostile texts: terminal, log, JSON, CSV, Markdown and plots show them as text"
    return _row(fault, folder, "security/test_output.py")


def networks(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """What the processes of a run open to others."""
    fault = "a run of two processes: no socket beyond the loopback interface, no pickle between them"
    return _row(fault, folder, "security/test_network.py")


def models(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Changed files of a model."""
    fault = "changed configurations of a model: an error or a model that works, and nothing is written"
    return _row(fault, folder, "model/test_limits.py")


def run_folders(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Changed, linked and planted files of run folders, sweeps and checkpoints."""
    fault = "hostile run folders and checkpoints: unreadable or refused, nothing outside of them written or deleted"
    own = ("security/test_hostile_runs.py", "security/test_hostile_checkpoints.py", "runtime/test_files.py")
    return _row(fault, folder, *own)


def _row(fault: str, folder: Path, *files: str) -> dict[str, Any]:
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
