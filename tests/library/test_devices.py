"""A script with a plain `pl.Trainer(devices=2)`: its processes share the clips, and train what one process trains."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from recordings import write_common_voice

SCRIPT = Path(__file__).with_name("two_devices.py")


def run(release: Path, folder: Path, devices: int) -> dict[str, Any]:
    line = [sys.executable, str(SCRIPT), str(release), str(folder), str(devices)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / f"results-{devices}.json").read_text())


@pytest.mark.slow
def test_two_devices_train_and_score_as_one(tmp_path: Path) -> None:
    release = write_common_voice(tmp_path / "ja", {"train": 10, "dev": 5, "test": 3})
    one, two = (run(release, tmp_path, devices) for devices in (1, 2))
    assert (one["world_size"], two["world_size"]) == (1, 2)
    assert one["steps"] == two["steps"] == 6
    assert two["trained"] == pytest.approx(one["trained"], abs=1e-5)
    # Each process has its own average of the same weights.
    assert len({*two["averaged"]}) == len({*two["raw"]}) == 1
    assert two["averaged"] != two["raw"]
    for stage in ("validated", "tested"):
        assert two[stage] == pytest.approx(one[stage], rel=1e-4)
    # Two epochs of nine clips, each clip trained on by one process only.
    assert sorted(map(len, two["trained_on"])) == [8, 10]
    assert sorted([*two["trained_on"][0], *two["trained_on"][1]]) == sorted(one["trained_on"][0])
    assert sorted(map(len, two["clips"])) == [1, 2]
    assert sorted([*two["clips"][0], *two["clips"][1]]) == [f"clip_{i}.mp3" for i in (15, 16, 17)]
    assert len(one["clips"][0]) == 3
    assert two["own_loss"] == pytest.approx(one["own_loss"], rel=1e-5)
    assert two["own_trained"] == pytest.approx(one["own_trained"], abs=1e-5)
