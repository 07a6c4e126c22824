"""What a command leaves behind and shows when it fails, and what hydra.job.chdir does to paths."""

import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from kikitori.cli import main
from kikitori.cli.hydra_app import guard_hydra, make_paths_absolute, remove_empty_run


@pytest.fixture
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    for owner, name in (
        (ConfigLoaderImpl, "load_configuration"),
        (ConfigRepository, "initialize_sources"),
        (Hydra, "get_help"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    handlers = list(logging.root.handlers)
    guard_hydra()
    yield
    logging.root.handlers[:] = handlers


def failure(monkeypatch: pytest.MonkeyPatch, *line: str) -> str:
    """Runs the command in this process and returns the message with which it ends."""
    monkeypatch.setattr(sys, "argv", ["kikitori", *line])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    with pytest.raises(SystemExit) as caught:
        main.main()
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.usefixtures("_in_an_empty_folder")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train data.release=/gone.tar.gz", "DataError: data.release=/gone.tar.gz does not exist. Download"),
        ("train data=demo model.name=/gone", "ConfigError: 1 problem in the configuration\n  model.name: /gone does"),
        (
            "evaluate data=demo checkpoint=/gone",
            "ConfigError: 1 problem in the configuration\n  checkpoint: /gone does",
        ),
        (
            "prepare data=manifest data.manifest=録音 (1)/gone.csv",
            "録音 (1)/gone.csv does not exist",
        ),
        ("train data=demo +data.limit.val=3", "  data.limit.val: no such key; did you mean data.limit.validation?"),
        ("train data=demo +unknown=1 +hydra.x=1", "  hydra.x: Hydra has no such key; there are "),
        ("train data=demo +unknown=1", "  unknown: no such key; see kikitori train --help"),
        ("train data=demo +callbacks.x=3", "  callbacks.x: must be a mapping with a _target_, got 3"),
        ("train data=demo optim=null", "kikitori: optim=null: no such choice. There are adamw"),
        (
            "train -m data=demo model=whisper_tiny model.name=/gone,/too",
            "trial 1: 1 problem in the configuration\n  mod",
        ),
        ("train -m data=manifest data.manifest=/gone.csv seed=0,1", "DataError: data.manifest: /gone.csv does not"),
    ],
)
def test_a_command_that_fails_at_once_shows_its_error_alone_and_leaves_nothing(
    line: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        word.replace("_", " ") if "録音" in word else word for word in line.replace("録音 (1)", "録音_(1)").split()
    ]
    assert message in failure(monkeypatch, *words)
    assert "Error executing job" not in capsys.readouterr().err
    assert os.listdir() in ([], ["outputs"])
    assert not [path for path in Path().rglob("*") if path.is_file()]


def test_a_folder_with_results_or_files_of_the_users_own_stays(tmp_path: Path) -> None:
    def start(**results: object) -> Path:
        folder = tmp_path / "2026-11-26" / "run"
        (folder / ".hydra").mkdir(parents=True, exist_ok=True)
        for name in (".hydra/config.yaml", "train.log", ".lock", "rejects.jsonl"):
            (folder / name).touch()
        (folder / "results.json").write_text(json.dumps({"status": "failed", "scores": {}} | results))
        return folder

    remove_empty_run(start(scores={"before": {}}))
    assert start().exists()
    for name in ("notes.txt", "checkpoints/a.ckpt", "predictions/test_before.jsonl", ".hydra/mine"):
        (file := start() / name).parent.mkdir(exist_ok=True)
        file.touch()
        remove_empty_run(start())
        assert file.exists()
        file.unlink()
    (start() / "rejects.jsonl").write_text("{}\n")
    remove_empty_run(start())
    assert start().exists()
    (start() / "rejects.jsonl").unlink()
    remove_empty_run(start())
    assert os.listdir(tmp_path) == []


def test_the_working_folder_is_never_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.log").touch()
    monkeypatch.chdir(tmp_path)
    remove_empty_run(Path())
    remove_empty_run(tmp_path)
    assert (tmp_path / "train.log").exists()


def test_paths_are_relative_to_where_the_command_was_started_also_with_chdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "a.csv").touch()
    hydra = {"runtime": {"cwd": str(tmp_path)}, "job": {"chdir": True}}
    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create(hydra))
    data = {"manifest": {"train": "a.csv", "test": "/b.csv"}, "release": "???"}
    cfg = OmegaConf.create({"data": data, "model": {"name": "model"}, "checkpoint": None})
    make_paths_absolute(cfg)
    assert cfg.data.manifest == {"train": f"{tmp_path}/a.csv", "test": "/b.csv"}
    assert cfg.model.name == f"{tmp_path}/model"
    cfg = OmegaConf.create({"data": {"manifest": "a.csv"}, "model": {"name": "openai/whisper-tiny"}})
    make_paths_absolute(cfg)
    assert (cfg.data.manifest, cfg.model.name) == (f"{tmp_path}/a.csv", "openai/whisper-tiny")
