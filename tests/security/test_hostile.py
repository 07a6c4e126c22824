"""The commands, as real processes, in a folder full of hostile files: none of them is executed.

An executed file would create the folder `sprung`. Each command reports the hostile file or works without it.
"""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kikitori.runtime.paths import DEMO

pytestmark = pytest.mark.long

SMALL = [
    *(
        "experiment=demo",
        "guard.clips=0",
        "model.d_model=32",
        "model.encoder_layers=1",
        "model.decoder_layers=1",
        "trainer.max_steps=2",
    ),
    *("data.limit={train: 8, validation: 2, test: 2}", "validation.every_steps=2", "generation.max_new_tokens=4"),
    *("score.train_clips=2", "logger=none"),
]


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with modules that Python would import if the folder were on its path."""
    folder = tmp_path_factory.mktemp("hostile")
    code = f"import os\nos.makedirs({str(folder / 'sprung')!r}, exist_ok=True)\n"
    for name in ("hydra_plugins/evil.py", "wandb.py", "sitecustomize.py", "kikitori.py", "random.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)
    return folder


def kikitori(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as the console script does, without the working folder on the path."""
    settings = {"KIKITORI_CACHE": str(folder / "cache"), "NO_COLOR": "1"}
    line = [sys.executable, "-P", "-m", "kikitori", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, cwd=folder, env={**os.environ, **settings})
    assert not (folder / "sprung").exists()
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A trial of a sweep: a separate process, and a second one for the second device."""
    devices = ["trainer=ddp", "trainer.devices=2", "data.num_workers=0"]
    done = kikitori(folder, "train", "-m", *SMALL, *devices, "hydra.sweep.dir=sweep", "seed=1")
    assert done.returncode == 0, done.stderr
    (found,) = (folder / "sweep").glob("*/results.json")
    return found.parent


def test_a_trial_and_its_processes_import_nothing_from_the_working_folder(run: Path) -> None:
    assert json.loads((run / "results.json").read_text(encoding="utf-8"))["status"] == "completed"


def test_a_run_whose_checkpoints_are_pickles_starts_from_step_0(folder: Path, run: Path) -> None:
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    results["status"] = "failed"
    (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
    for path in run.glob("checkpoints/*.ckpt"):
        path.write_bytes(pickle.dumps(Trap(folder / "sprung")))
    done = kikitori(folder, "train", f"resume={run}")
    assert done.returncode == 0, done.stderr
    assert "is skipped" in done.stdout + done.stderr


def test_evaluate_and_transcribe_refuse_a_pickle_as_a_model(folder: Path) -> None:
    (folder / "evil.ckpt").write_bytes(pickle.dumps(Trap(folder / "sprung")))
    done = kikitori(folder, "evaluate", "data=demo", "checkpoint=evil.ckpt", "hydra.run.dir=evaluated")
    assert done.returncode == 1
    assert "is damaged, or holds more than weights" in done.stderr
    (folder / "model").mkdir()
    for name in ("pytorch_model.bin", "model.safetensors", "config.json"):
        (folder / "model" / name).write_bytes(pickle.dumps(Trap(folder / "sprung")))
    clip = next((DEMO / "clips").iterdir())
    done = kikitori(folder, "transcribe", str(clip), "--model", "model")
    assert done.returncode == 1
    assert "ModelError: --model model cannot be loaded" in done.stderr


def test_compare_reports_a_run_whose_files_are_pickles(folder: Path) -> None:
    for name in ("results.json", "sweep.json", "metrics.csv"):
        (folder / "strange").mkdir(exist_ok=True)
        (folder / "strange" / name).write_bytes(pickle.dumps(Trap(folder / "sprung")))
    done = kikitori(folder, "compare", "strange")
    assert done.returncode == 1
    assert "results.json is damaged or cut off" in done.stderr


def test_a_pickled_configuration_is_refused(folder: Path) -> None:
    (folder / "config.pickle").write_bytes(pickle.dumps(Trap(folder / "sprung")))
    done = kikitori(folder, "train", "--experimental-rerun", "config.pickle")
    assert done.returncode == 1
    assert "would load a pickle" in done.stderr
