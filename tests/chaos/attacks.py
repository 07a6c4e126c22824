"""What a stranger may hand in: the tables of the fast tests, run once more and counted.

Their kinds are fixed, so that neither count nor seed says anything: each row is the whole of its table.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

TESTS = Path(__file__).parents[1]


def archives(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Links, devices, pipes, paths that lead out, bombs, names that only look so, downloads cut short."""
    return _row("a hostile archive: nothing outside, nothing without bound", folder, "test_archive.py")


def paths_of_tables(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """What a table may name instead of a recording below it."""
    return _row("a path of a table: inside clips/, never waited for, counted", folder, "test_hostile_paths.py")


def targets(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Callables in a configuration, from the command line and from files."""
    return _row("a foreign `_target_`, or what else Hydra would call: refused, not called", folder, "test_targets.py")


def pickles(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """A pickle, or a module, wherever a file is read."""
    fault = "a pickle where a file is read: not executed, told or passed over"
    return _row(fault, folder, "security/test_untrusted_files.py", "security/test_hostile.py")


def secrets(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Canaries in the environment, and the speakers of the corpus."""
    fault = "a secret or a speaker in a file or a line: runs, resumed, failing, compared"
    return _row(fault, folder, "security/test_secrets.py")


def _row(fault: str, folder: Path, *files: str) -> dict[str, Any]:
    """Run the tests of these files in a process of their own, and count them."""
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / "report.xml"
    # Not this run's cache, and no modules that its own path would put in front.
    kept = {key: value for key, value in os.environ.items() if not key.startswith("KIKITORI_")}
    line = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", f"--basetemp={folder / 'tests'}"]
    done = subprocess.run([*line, *(str(TESTS / file) for file in files)], capture_output=True, text=True, env=kept)
    if not report.exists():
        return {"fault": fault, "runs": 1, "good": 0, "notes": done.stdout[-2000:] + done.stderr[-2000:]}
    cases = list(ElementTree.parse(report).iter("testcase"))
    skipped = sum(case.find("skipped") is not None for case in cases)
    bad = [c.get("name") for c in cases if c.find("failure") is not None or c.find("error") is not None]
    notes = [f"{skipped} skipped"] * bool(skipped) + [f"not {name}" for name in bad]
    runs = len(cases) - skipped
    return {"fault": fault, "runs": runs, "good": runs - len(bad), "notes": "; ".join(notes)}
