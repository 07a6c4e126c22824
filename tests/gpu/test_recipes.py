"""Recipes beyond plain fine-tuning on a GPU, by the real commands: trained, guarded, resumed, mixed, transcribed."""

import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_scripts import run_together, start
from safetensors.torch import load_file

from kikitori.runtime.paths import DEMO

SMALL = [
    *("experiment=demo", "trainer=auto", "trainer.accelerator=auto", "logger=none", "model.timestamps=true"),
    *("model.window_s=6", "data.window=bucketed", "data.window_edges_s=[2,3]", "guard.clips=4"),
    *("data.limit={train: 32, validation: 6, test: 6}", "score.train_clips=3", "generation.max_new_tokens=12"),
    *("trainer.max_steps=20", "validation.every_steps=5", "optim.warmup_steps=1"),
]
MUON = ["optim=muon", "ema.decay=0.9", "joining=windows", "augment=light", "++trainer.deterministic=true"]
RECIPES = {
    "muon": [*MUON, "trainer.precision=16-mixed"],
    "killed": [*MUON, "trainer.precision=16-mixed"],
    "lora": ["adapter=lora", "augment=heavy", "trainer.precision=bf16-mixed"],
    "adamw8bit": ["optim=adamw8bit", "joining=windows", "trainer.precision=bf16-mixed", "model.d_model=256"],
}
NEEDS = {"lora": "peft", "adamw8bit": "bitsandbytes"}
PRESENT = [name for name in RECIPES if name not in NEEDS or find_spec(NEEDS[name])]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "kikitori", *words]


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of all recipes that the installed packages allow, trained at once; `killed` has been killed."""
    folder = tmp_path_factory.mktemp("recipes")
    environment = {"KIKITORI_CACHE": str(folder / "cache")}
    started = {}
    for name in PRESENT:
        line = command("train", *SMALL, *RECIPES[name], f"hydra.run.dir={name}")
        started[name] = start((line, environment), folder / f"{name}.log")
    while not (folder / "killed/checkpoints/last.ckpt").exists() and started["killed"].poll() is None:
        time.sleep(0.01)
    started["killed"].kill()
    codes = {name: process.wait(200) for name, process in started.items() if name != "killed"}
    assert not any(codes.values()), "\n".join((folder / f"{n}.log").read_text() for n, code in codes.items() if code)
    return folder


@pytest.mark.parametrize("name", ["muon", "lora", "adamw8bit"])
def test_a_recipe_is_trained_and_guarded(runs: Path, name: str, record_property: Any) -> None:
    if name not in PRESENT:
        pytest.skip(f"needs the package {NEEDS[name]}")
    run = results(runs / name)
    record_property("peak memory", f"{run['cost']['peak_memory_gb']:.2f} GiB")
    record_property("guard", f"{run['cost']['guard_s']:.0f} s")
    assert (run["status"], run["cost"]["device"]) == ("completed", torch.cuda.get_device_name())
    assert all(torch.isfinite(torch.tensor(row["train/loss"])) for row in run["history"])
    assert {row["reading"] for row in run["guard"]} == {"own windows", "full window"}
    assert {"timestamps", "reversed speech", "joined 24 s"} <= {row["set"] for row in run["guard"]}
    assert run["long_recordings"]["segments"] in ("pauses", "timestamps")
    assert (runs / name / "adapter").exists() == (name == "lora")


def test_muon_with_an_average_is_resumed_to_the_bit(runs: Path) -> None:
    line = command("train", "resume=killed")
    run_together([(line, {"KIKITORI_CACHE": str(runs / "cache")})], runs)
    one, other = weights(runs / "muon"), weights(runs / "killed")
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert results(runs / "muon")["guard"] == results(runs / "killed")["guard"]


def test_models_are_mixed_compared_and_read_long_recordings(runs: Path) -> None:
    clips = [str(path) for path in sorted((DEMO / "clips").iterdir())[:2]]
    average = ["average", "muon", "--against", "muon/model", "alphas=[0,1]", "guard.clips=2"]
    lines = [
        command(*average, "hydra.run.dir=average"),
        command("guard", "muon", "--against", "muon/model", "guard.clips=2", "hydra.run.dir=guard"),
        command("transcribe", *clips, "--model", "muon", "--segments", "timestamps", "--previous-text"),
    ]
    run_together([(line, {"KIKITORI_CACHE": str(runs / "cache")}) for line in lines], runs)
    assert all(row["change"] == 0 for folder in ("average", "guard") for row in results(runs / folder)["guard"])
