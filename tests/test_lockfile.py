"""What is installed is what was locked: each package by the digests of its files, from no place that a lock names."""

import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
REQUIREMENT = re.compile(
    r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?(\[[a-z0-9,-]+\])?==[0-9][a-z0-9.!+]*( ; [^@:/\\]+)?( --hash=sha256:[0-9a-f]{64})+"
)


def requirements(text: str) -> list[str]:
    """One requirement a line, comments and line ends folded."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [re.sub(r" +", " ", line).strip() for line in lines if line.strip() and not line.startswith("#")]


def strange(text: str) -> list[str]:
    return [line for line in requirements(text) if not REQUIREMENT.fullmatch(line)]


@pytest.mark.parametrize(("lock", "least"), [("requirements.lock", 100), ("audit.lock", 20)])
def test_every_line_of_a_lock_is_a_package_of_one_version_with_its_digests(lock: str, least: int) -> None:
    text = (TOP / lock).read_text(encoding="utf-8")
    assert len(requirements(text)) >= least
    assert strange(text) == []


HASH = f"--hash=sha256:{'a' * 64}"


@pytest.mark.parametrize(
    "line",
    [
        *("torch==2.11.0", "torch", f"torch>=2 {HASH}", f"torch==2.* {HASH}", "torch==2.11.0 --hash=md5:abc"),
        *(f"torch @ https://example.org/torch.whl {HASH}", f"https://example.org/torch.whl {HASH}"),
        *(f"git+https://example.org/torch {HASH}", f"./torch.whl {HASH}", f"-e . {HASH}", "-e .", "../torch"),
        *("--index-url https://example.org/simple", "--extra-index-url=https://example.org", "-i https://example.org"),
        *("--find-links wheels", "--trusted-host example.org", "-r other.lock", f"file:///torch.whl {HASH}"),
        *(f"torch==2.11.0 ; python_version > '3' @ https://example.org {HASH}", f"{HASH}", "--no-binary torch"),
    ],
)
def test_the_check_tells_another_line(line: str) -> None:
    good = f"numpy==2.4.6 ; sys_platform != 'win32' \\\n    {HASH} \\\n    {HASH}\n"
    assert strange(good) == []
    assert strange(good + line + "\n") == [line]


def test_the_audit_fails_where_it_cannot_ask() -> None:
    """Without --strict, pip-audit calls packages sound that it found nowhere."""
    (recipe,) = re.findall(r"^audit:.*\n((?:\t.*\n)+)", (TOP / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert "--strict" in recipe
    assert "exit 1" in recipe
