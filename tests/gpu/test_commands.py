"""The real command on a GPU: its automatic choices, and a run that is killed and resumed."""

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_models import distance
from gpu_scripts import run_together, start
from safetensors.torch import load_file

# Dropout draws from the GPU's own random numbers, so they must be in the checkpoint.
TRAIN = [
    *(
        "train",
        "experiment=demo",
        "guard.clips=0",
        "trainer=auto",
        "trainer.accelerator=auto",
        "trainer.precision=16-mixed",
    ),
    *("data.limit={train: 64, validation: 8, test: 8}", "score.train_clips=3", "logger=none", "model.dropout=0.1"),
    *("trainer.max_steps=200", "validation.every_steps=40", "generation.max_new_tokens=12"),
]
DETERMINISTIC = "++trainer.deterministic=true"
OTHERWISE = "++trainer.deterministic=false"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "kikitori", *TRAIN, *arguments]


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def trained(folder: Path) -> torch.Tensor:
    return torch.cat([value.flatten() for _, value in sorted(load_file(folder / "model/model.safetensors").items())])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of four runs at once: a whole one, one that is killed and resumed, and two not deterministic ones."""
    folder = tmp_path_factory.mktemp("runs")
    environment = {"KIKITORI_CACHE": str(folder / "cache")}
    killed = start((command(DETERMINISTIC, "hydra.run.dir=killed"), environment), folder / "killed.log")
    lines = [
        command(DETERMINISTIC, "hydra.run.dir=whole"),
        command(OTHERWISE, "hydra.run.dir=a"),
        command(OTHERWISE, "hydra.run.dir=b"),
    ]
    others = [start((line, environment), folder / f"{line[-1][-5:]}.log") for line in lines]
    while not (folder / "killed/checkpoints/last.ckpt").exists() and killed.poll() is None:
        time.sleep(0.01)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL, (folder / "killed.log").read_text()
    assert [other.wait(200) for other in others] == [0, 0, 0]
    return folder


def test_a_run_takes_the_gpu_and_mixed_precision(runs: Path, record_property: Any) -> None:
    run = results(runs / "whole")
    record_property("device", run["cost"]["device"])
    record_property("peak memory", f"{run['cost']['peak_memory_gb']:.2f} GiB")
    assert run["status"] == "completed"
    assert run["cost"]["device"] == torch.cuda.get_device_name()
    assert run["cost"]["peak_memory_gb"] > 0
    losses = [row["train/loss"] for row in run["history"]]
    assert losses[-1] < losses[0] / 2


def test_a_killed_and_resumed_run_gives_the_weights_of_an_undisturbed_one(runs: Path) -> None:
    resume = [sys.executable, "-m", "kikitori", "train", "resume=killed"]
    run_together([(resume, {"KIKITORI_CACHE": str(runs / "cache")})], runs)
    assert results(runs / "killed")["history"] == results(runs / "whole")["history"]
    assert torch.equal(trained(runs / "killed"), trained(runs / "whole"))


def test_two_runs_that_are_not_deterministic_differ_by_rounding(runs: Path, record_property: Any) -> None:
    apart = distance(trained(runs / "a"), trained(runs / "b"))
    record_property("relative difference of the weights after 200 steps in fp16", f"{apart:.1e}")
    assert apart < 0.5
