"""`resume=FOLDER` is the command that the folder's run was started with, and what is given besides."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from kikitori.config.overrides import config_options
from kikitori.runs.resume import expand_resume
from kikitori.runtime.errors import ConfigError, DataError
from kikitori.runtime.files import write_json


def run(folder: Path, *overrides: str, command: str = "train", options: Sequence[str] = ()) -> Path:
    folder.mkdir(exist_ok=True)
    facts = {"command": command, "overrides": list(overrides), "options": list(options)}
    write_json(folder / "results.json", facts)
    return folder


def test_a_run_is_gone_on_with_as_it_was_started(tmp_path: Path) -> None:
    folder = run(tmp_path / "it's a run", "experiment=demo", "optim.lr=1e-4", "+callbacks.x=1", "resume=auto")
    line = expand_resume("train", [f"resume={folder}"])
    quoted = str(folder).replace("'", "\\'")
    assert line == ["experiment=demo", "optim.lr=1e-4", "+callbacks.x=1", f"hydra.run.dir='{quoted}'", "resume=auto"]


def test_what_is_given_now_wins(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", "experiment=demo", "optim.lr=1e-4", "+data.x=1", "resume_accept=[seed]")
    line = expand_resume("train", ["optim.lr=3e-4", f"resume='{folder}'", "data.x=2", "resume_accept=[optim.lr]"])
    assert line[:-2] == ["experiment=demo", "optim.lr=3e-4", "data.x=2", "resume_accept=[optim.lr]"]


def test_a_foreign_configuration_tree_is_found_again(tmp_path: Path) -> None:
    sources = [{"provider": "main", "path": "/theirs/conf"}, {"provider": "command-line", "path": "/mine"}]
    hydra = OmegaConf.create({"runtime": {"config_sources": sources}, "job": {"config_name": "train"}})
    folder = run(tmp_path / "a", "experiment=mine", options=config_options(hydra, "train"))
    line = expand_resume("train", [f"resume={folder}"])
    assert line[:4] == ["--config-path", "/theirs/conf", "--config-dir", "/mine"]
    assert expand_resume("train", ["--config-dir", "/other", f"resume={folder}"])[:2] == [
        "experiment=mine",
        "--config-dir",
    ]


@pytest.mark.parametrize("line", [["seed=1"], ["resume=auto", "hydra.run.dir=x"], ["resume=null"], []])
def test_other_lines_stay_as_they_are(line: list[str]) -> None:
    assert expand_resume("train", line) == line


def test_what_cannot_be_gone_on_with_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="resume=true holds no run; give a run's folder, or resume=auto"):
        expand_resume("train", ["resume=true"])
    with pytest.raises(ConfigError, match=r"resumes a single run; for a sweep use resume_sweep="):
        expand_resume("train", ["-m", f"resume={run(tmp_path / 'a')}"])
    folder = run(tmp_path / "a", command="evaluate")
    with pytest.raises(ConfigError, match="holds a run of kikitori evaluate, not of train"):
        expand_resume("train", [f"resume={folder}"])
    (folder / "results.json").write_text("{")
    with pytest.raises(DataError, match=r"results\.json cannot be read"):
        expand_resume("train", [f"resume={folder}"])
