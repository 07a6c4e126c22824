"""Lock files pin each package by version and file digests, and name no source."""

import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
REQUIREMENT = re.compile(
    r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?(\[[a-z0-9,-]+\])?==[0-9][a-z0-9.!+]*( ; [^@:/\\]+)?( --hash=sha256:[0-9a-f]{64})+"
)


def requirements(text: str) -> list[str]:
    """Return one line per requirement, without comments and line continuations."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [re.sub(r" +", " ", line).strip() for line in lines if line.strip() and not line.startswith("#")]


def invalid(text: str) -> list[str]:
    return [line for line in requirements(text) if not REQUIREMENT.fullmatch(line)]


@pytest.mark.parametrize(("lock", "least"), [("requirements.lock", 100), ("audit.lock", 20)])
def test_every_line_of_a_lock_is_one_version_of_a_package_with_its_digests(lock: str, least: int) -> None:
    text = (TOP / lock).read_text(encoding="utf-8")
    assert len(requirements(text)) >= least
    assert invalid(text) == []


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
def test_the_check_finds_any_other_line(line: str) -> None:
    good = f"numpy==2.4.6 ; sys_platform != 'win32' \\\n    {HASH} \\\n    {HASH}\n"
    assert invalid(good) == []
    assert invalid(good + line + "\n") == [line]


def test_the_audit_fails_if_advisories_cannot_be_reached() -> None:
    """Without --strict, pip-audit reports no problem for packages that it cannot look up."""
    (recipe,) = re.findall(r"^audit:.*\n((?:\t.*\n)+)", (TOP / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert "--strict" in recipe
    assert "exit 1" in recipe
