"""Secrets from the environment and speaker ids reach no file and no line of output.

Real commands on the demo corpus, with canaries as secrets; then every byte that they wrote is searched.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from wandb_offline import OfflineRun

from kikitori.runtime.paths import DEMO

pytestmark = pytest.mark.long

NAMES = ("HF_TOKEN", "WANDB_API_KEY", "MY_SECRET_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD")
# As long as an API key of Weights & Biases.
CANARIES = {name: f"{number}canary{number}".ljust(40, "0") for number, name in enumerate(NAMES)}
SPEAKERS = {
    line.split("\t")[0]
    for table in ("train", "dev", "test")
    for line in (DEMO / f"{table}.tsv").read_text(encoding="utf-8").splitlines()[1:]
}
FORBIDDEN = re.compile("|".join(map(re.escape, [*CANARIES.values(), *SPEAKERS])).encode())
SMALL = [
    *("experiment=demo", "guard.clips=0", "model.d_model=32", "model.encoder_layers=1", "model.decoder_layers=1"),
    *("data.limit={train: 12, validation: 4, test: 5}", "validation.every_steps=2", "generation.max_new_tokens=12"),
    *("score.train_clips=3", "data.global_batch_size=4", "logger=both"),
]


def kikitori(folder: Path, *arguments: str, code: int = 0, **environment: str) -> str:
    """Run a command with the canaries in its environment; returns its output."""
    settings = {"KIKITORI_CACHE": str(folder / "cache"), "WANDB_MODE": "offline", **CANARIES, **environment}
    line = [sys.executable, "-m", "kikitori", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, cwd=folder, env={**os.environ, **settings})
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, the same run resumed, a run that fails with a traceback, an evaluation, a page, and all their output."""
    folder = tmp_path_factory.mktemp("secrets")
    printed = kikitori(folder, "train", *SMALL, "trainer.max_steps=2", "hydra.run.dir=run", WANDB_SAVE_CODE="true")
    results = json.loads((folder / "run" / "results.json").read_text(encoding="utf-8"))
    results["status"] = "failed"  # a completed run cannot be resumed
    (folder / "run" / "results.json").write_text(json.dumps(results), encoding="utf-8")
    resumed = ["trainer.max_steps=4", "resume_accept=[trainer.max_steps]", "resume=run"]
    printed += kikitori(folder, "train", *SMALL, *resumed, WANDB_SAVE_CODE="true")
    bad = ["data.max_duration_s=0.5", "data.limit.test=null", "hydra.run.dir=fails"]
    printed += kikitori(folder, "train", *SMALL, *bad, code=1, HYDRA_FULL_ERROR="1")
    assert "Traceback" in printed
    on = ["data=demo", "data.limit={validation: 4, test: 5}", "checkpoint=run", "hydra.run.dir=evaluated"]
    printed += kikitori(folder, "evaluate", *on)
    printed += kikitori(folder, "compare", "run", "--report", "page.html")
    (folder / "printed.txt").write_text(printed, encoding="utf-8")
    return folder


def test_no_secret_and_no_speaker_is_in_any_file_or_output(written: Path) -> None:
    files = [path for path in written.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert {".ckpt", ".safetensors", ".wandb", ".html", ".arrow", ".yaml", ".json", ".jsonl", ".txt", ".log"} <= kinds
    assert any(path.name.startswith("events.") for path in files)
    found = {str(path.relative_to(written)): hit for path in files if (hit := FORBIDDEN.search(path.read_bytes()))}
    assert not found
    assert not [path for path in written.rglob("*") if FORBIDDEN.search(os.fsencode(path))]


def test_the_search_would_find_one(written: Path) -> None:
    assert len(SPEAKERS) >= 5
    for secret in (*CANARIES.values(), *SPEAKERS):
        assert FORBIDDEN.search(f"a{secret}b".encode())


def test_no_code_goes_to_wandb_whatever_its_environment_variables_allow(written: Path, tmp_path: Path) -> None:
    """Nothing would send code, a patch, the command line or the list of packages. A resumed run replaces its record."""
    starts = sorted(written.glob("run/wandb/offline-run-*"))
    assert len(starts) == 1
    for number, start in enumerate(starts):
        folder = tmp_path / str(number)
        (folder / "wandb").mkdir(parents=True)
        (folder / "wandb" / start.name).symlink_to(start)
        sent = OfflineRun(folder)
        assert "environment" not in sent.kinds
        assert set(sent.artifacts) == {"run_table"}
        assert {name.suffix for name in start.joinpath("files").rglob("*") if name.is_file()} == {".json"}
        assert all(path.suffix == ".json" for path in sent.files)
