"""Runs on several devices, as real processes: the scores of one process, and no process left when one dies."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

# Odd numbers of clips, and an epoch that is not a whole number of steps.
SMALL = [
    *(
        "experiment=demo",
        "guard.clips=0",
        "model.d_model=32",
        "model.encoder_layers=1",
        "model.decoder_layers=1",
        "optim.lr=3e-3",
    ),
    *("data.limit={train: 11, validation: 5, test: 3}", "validation.every_steps=20", "generation.max_new_tokens=20"),
    *("logger=none", "score.train_clips=3", "optim.warmup_steps=1", "trainer.max_steps=60"),
    # Steps over several windows, every fourth in the full one.
    *("data.window=bucketed", "data.window_edges_s=[1.5,1.8,2.1,2.5]", "data.full_window_share=0.25"),
]
ENDLESS = ["trainer.max_steps=100000", "validation.every_steps=5"]
# It also applies to the start, where one process may import for longer than the other.
TIMEOUT_S = 100
# With micro-batches of two clips, so that a step has several.
TWO = ["trainer=ddp", "trainer.devices=2", "data.micro_batch_size=2"]


def start(*arguments: str, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kikitori", "train", *arguments]
    settings = {"KIKITORI_CACHE": str(cache), "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **settings}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=cache, env=environment)


def train(*arguments: str, cache: Path) -> tuple[int, str]:
    """Train; returns the exit code and stderr."""
    return kikitori(*SMALL, *arguments, cache=cache)


def kikitori(*arguments: str, cache: Path) -> tuple[int, str]:
    process = start(*arguments, cache=cache)
    return process.wait(), process.communicate()[1]


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes that a process started, in order of rank."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [d for child in map(int, children) for d in (child, *descendants(child))]


def alive(pid: int) -> bool:
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait_for(what: Any, seconds: float) -> float:
    """Wait until `what()` is true; returns the seconds that took."""
    begun = time.monotonic()
    while not what():
        assert time.monotonic() - begun < seconds, "timed out"
        time.sleep(0.1)
    return time.monotonic() - begun


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def alone(cache: Path) -> Path:
    """A run of one process, trained enough for scores between 0 and 1."""
    code, errors = train("hydra.run.dir=alone", cache=cache)
    assert code == 0, errors
    rates = results(cache / "alone")["scores"]["after"]["validation"]
    assert 0 < rates["cer"] < 1
    assert 0 < rates["wer"] < 1
    return cache / "alone"


@pytest.fixture
def running(cache: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, subprocess.Popen[str], int]]:
    """A run of two processes that trains: folder, process 0, id of process 1."""
    folder = cache / request.function.__name__
    timeout = f"trainer.strategy.collective_timeout_s={getattr(request, 'param', TIMEOUT_S)}"
    process = start(*SMALL, *TWO, *ENDLESS, timeout, f"hydra.run.dir={folder}", cache=cache)
    others: list[int] = []
    try:
        wait_for(lambda: list(folder.glob("checkpoints/step-*.ckpt")) or process.poll() is not None, 120)
        assert process.poll() is None, process.communicate()[1]
        (rank_1,) = others = descendants(process.pid)
        yield folder, process, rank_1
    finally:
        process.kill()
        process.communicate()
        for other in filter(alive, others):
            os.kill(other, signal.SIGKILL)


def assert_same(one: Path, other: Path) -> None:
    """Transcripts and scores must be equal, losses equal up to the order of floating-point additions."""
    some, others = results(one), results(other)
    assert some["scores"] == others["scores"]
    for row, twin in zip(some["history"], others["history"], strict=True):
        assert (row["val/cer"], row["val/wer"]) == (twin["val/cer"], twin["val/wer"])
        assert row == pytest.approx(twin, rel=1e-4)
    files = sorted(path.name for path in (one / "predictions").iterdir())
    assert len(files) == 8
    for name in files:
        assert (one / "predictions" / name).read_text() == (other / "predictions" / name).read_text(), name


@pytest.mark.long
def test_two_processes_give_the_scores_and_losses_of_one(alone: Path, cache: Path) -> None:
    code, errors = train(*TWO, "hydra.run.dir=two", cache=cache)
    assert code == 0, errors
    assert_same(cache / "two", alone)
    assert results(cache / "two")["cost"]["devices"] == 2


@pytest.mark.long
def test_each_job_of_a_sweep_trains_its_own_values_in_both_processes(alone: Path, cache: Path) -> None:
    swept = ["hydra.mode=MULTIRUN", "optim.lr=1e-5,3e-3", "hydra.sweep.dir=sweep"]
    code, errors = train(*TWO, *swept, cache=cache)
    assert code == 0, errors
    first, second = sorted(path.parent for path in (cache / "sweep").glob("*/results.json"))
    assert_same(second, alone)
    assert results(first)["history"][-1]["train/loss"] > 2 * results(second)["history"][-1]["train/loss"]


def test_a_killed_process_ends_the_run_and_is_named(running: tuple[Path, subprocess.Popen[str], int]) -> None:
    folder, process, rank_1 = running
    os.kill(rank_1, signal.SIGKILL)
    took = wait_for(lambda: process.poll() is not None, 60)
    print(f"ended {took:.1f} s after process 1 was killed")
    assert process.returncode not in (0, None)
    assert results(folder)["status"] == "failed"
    assert "process 1 of 2 was killed by SIGKILL" in results(folder)["error"]
    assert not alive(rank_1)


@pytest.mark.long
def test_no_process_outlives_process_0(running: tuple[Path, subprocess.Popen[str], int]) -> None:
    _, process, rank_1 = running
    process.kill()
    took = wait_for(lambda: not alive(rank_1), 20)
    print(f"process 1 ended {took:.1f} s after process 0 was killed")


def test_a_run_that_gets_sigterm_fails_and_can_be_resumed(
    running: tuple[Path, subprocess.Popen[str], int], cache: Path
) -> None:
    folder, process, rank_1 = running
    process.terminate()
    took = wait_for(lambda: process.poll() is not None, 20)
    print(f"ended {took:.1f} s after SIGTERM")
    assert process.returncode == 128 + signal.SIGTERM
    assert results(folder)["error"] == "stopped by SIGTERM"
    wait_for(lambda: not alive(rank_1), 5)
    steps = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    more = [f"trainer.max_steps={steps + 5}", "resume_accept=[trainer.max_steps]", f"resume={folder}"]
    code, errors = kikitori(*more, cache=cache)
    assert code == 0, errors
    assert results(folder)["status"] == "completed"
    assert results(folder)["history"][0]["step"] == 5
    assert results(folder)["history"][-1]["step"] == steps + 5


@pytest.mark.long
@pytest.mark.parametrize("running", [20], indirect=True)
def test_a_process_that_hangs_ends_the_run_at_the_timeout(running: tuple[Path, subprocess.Popen[str], int]) -> None:
    folder, process, rank_1 = running
    os.kill(rank_1, signal.SIGSTOP)
    took = wait_for(lambda: process.poll() is not None, 60)
    print(f"ended {took:.1f} s after process 1 was stopped; the timeout is 20 s")
    assert 19 < took < 40
    assert process.returncode not in (0, None)
    assert results(folder)["status"] == "failed"
    assert not alive(rank_1)


def test_more_processes_than_clips_are_refused(cache: Path) -> None:
    code, errors = train(*TWO, "score.train_clips=1", "hydra.run.dir=refused", cache=cache)
    assert code == 1
    assert "1 clips of the train split cannot be shared by 2 processes" in errors
    assert "Traceback" not in errors
    assert results(cache / "refused")["status"] == "failed"
