"""The commands, as real processes, in a folder where everything is a stranger's: none of it is executed.

Each trap would make the folder named by TRAP; each command says what is wrong, or does its work without it.
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
    *("experiment=demo", "model.d_model=32", "model.encoder_layers=1", "model.decoder_layers=1", "trainer.max_steps=2"),
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
    """A folder to work in, with modules that Python would import from it, were it asked to look there."""
    folder = tmp_path_factory.mktemp("hostile")
    code = f"import os\nos.makedirs({str(folder / 'sprung')!r}, exist_ok=True)\n"
    for name in ("hydra_plugins/evil.py", "wandb.py", "sitecustomize.py", "kikitori.py", "random.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)
    return folder


def kikitori(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As the console script does, not looking for modules in the folder itself."""
    settings = {"KIKITORI_CACHE": str(folder / "cache"), "NO_COLOR": "1"}
    line = [sys.executable, "-P", "-m", "kikitori", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, cwd=folder, env={**os.environ, **settings})
    assert not (folder / "sprung").exists()
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A trial of a sweep, which is a process of its own, and on two devices a second one."""
    devices = ["trainer=ddp", "trainer.devices=2", "data.num_workers=0"]
    done = kikitori(folder, "train", "-m", *SMALL, *devices, "hydra.sweep.dir=sweep", "seed=1")
    assert done.returncode == 0, done.stderr
    (found,) = (folder / "sweep").glob("*/results.json")
    return found.parent


def test_a_trial_and_its_processes_import_nothing_from_where_they_run(run: Path) -> None:
    assert json.loads((run / "results.json").read_text(encoding="utf-8"))["status"] == "completed"


def test_a_run_whose_checkpoints_are_pickles_begins_anew(folder: Path, run: Path) -> None:
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    results["status"] = "failed"
    (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
    for path in run.glob("checkpoints/*.ckpt"):
        path.write_bytes(pickle.dumps(Trap(folder / "sprung")))
    done = kikitori(folder, "train", f"resume={run}")
    assert done.returncode == 0, done.stderr
    assert "is skipped" in done.stdout + done.stderr


def test_a_pickle_to_evaluate_or_to_transcribe_with_is_refused(folder: Path) -> None:
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
    assert "ModelError: model.name=model cannot be loaded" in done.stderr


def test_a_run_to_compare_whose_files_are_pickles_is_told(folder: Path) -> None:
    for name in ("results.json", "sweep.json", "metrics.csv"):
        (folder / "strange").mkdir(exist_ok=True)
        (folder / "strange" / name).write_bytes(pickle.dumps(Trap(folder / "sprung")))
    done = kikitori(folder, "compare", "strange")
    assert done.returncode == 1
    assert "results.json is damaged or cut off" in done.stderr


def test_a_pickle_to_run_again_is_refused(folder: Path) -> None:
    (folder / "config.pickle").write_bytes(pickle.dumps(Trap(folder / "sprung")))
    done = kikitori(folder, "train", "--experimental-rerun", "config.pickle")
    assert done.returncode == 1
    assert "would load a pickle" in done.stderr
