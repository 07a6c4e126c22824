"""The Makefile: its help lists every target, and .ci/run runs each check once."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="no make here")


def make(*arguments: str) -> str:
    return subprocess.run(["make", *arguments], cwd=TOP, capture_output=True, text=True, check=True).stdout


def test_help_lists_every_target_in_80_columns() -> None:
    (targets,) = re.findall(r"^\.PHONY: (.*)", (TOP / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    lines = make("--silent", "help").splitlines()
    assert [line.split()[1] for line in lines] == targets.split()
    assert max(map(len, lines)) <= 80


def test_ci_runs_each_check_once() -> None:
    steps = re.findall(r"^make (\S+)$", (TOP / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    commands = "\n".join(make("--dry-run", "--assume-old=.venv/installed", step) for step in steps)
    for check in ("bin/ruff check", "bin/ruff format --check", "bin/mypy", "-m pytest"):
        assert commands.count(check) == 1, check
