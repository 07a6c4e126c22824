"""Tests on an NVIDIA GPU: skipped without one, and followed by a table of the card and of what each test measured.

A test records a figure with `record_property(name, text)`. `--gpu-table FILE` also writes the table as Markdown.
"""

import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import transformers
from gpu_models import free_memory

HERE = Path(__file__).parent
OUTCOMES = ("passed", "failed", "error", "skipped", "xfailed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu-table", type=Path, help="file for the Markdown table of the tests on a GPU")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="torch finds no NVIDIA GPU on this machine"))


@pytest.fixture(autouse=True)
def _free_memory() -> Any:
    """Each test starts with an empty allocator, and leaves the process without limits."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.set_sync_debug_mode("default")
    free_memory()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    reports = [
        (report, outcome)
        for outcome in OUTCOMES
        for report in terminalreporter.stats.get(outcome, [])
        if "tests/gpu/" in report.nodeid and report.when in ("call", "setup")
    ]
    if not reports or not torch.cuda.is_available():
        return
    rows = [
        f"| {_in_words(report.nodeid)} | {outcome} | {'; '.join(f'{k} {v}' for k, v in report.user_properties)} |"
        for report, outcome in sorted(reports, key=lambda pair: pair[0].nodeid)
    ]
    table = "\n".join([f"{machine()}\n", "| check | outcome | measured |", "| --- | --- | --- |", *rows])
    terminalreporter.write_sep("=", "on this GPU")
    terminalreporter.write_line(table)
    if path := config.getoption("gpu_table", default=None):
        path.write_text(f"{table}\n", encoding="utf-8")


def _in_words(nodeid: str) -> str:
    name, _, parameters = nodeid.split("::")[-1].removeprefix("test_").partition("[")
    return name.replace("_", " ") + (f" ({parameters.removesuffix(']')})" if parameters else "")


def machine() -> str:
    """The cards, driver and versions, in one line."""
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    names = ", ".join(f"{card.name} ({card.total_memory / 2**30:.0f} GiB)" for card in cards)
    driver = "unknown"
    if smi := shutil.which("nvidia-smi"):
        query = [smi, "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0].strip() or driver
    return (
        f"{names}; driver {driver}; torch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"cuDNN {torch.backends.cudnn.version()}; transformers {transformers.__version__}, Lightning {pl.__version__}, "
        f"Python {platform.python_version()}"
    )
