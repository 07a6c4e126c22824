import subprocess
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict, read_write

from kikitori.cli import train
from kikitori.config.overrides import config_options
from kikitori.runtime.errors import ConfigError, SweepError
from kikitori.runtime.paths import CONF
from kikitori.sweeps.launcher import Process, TrialRunner, launch
from kikitori.sweeps.trials import Sweep, Trial


def runner(folder: Path, *overrides: str, parallel: int | None = None, gpus_per_trial: int = 1) -> TrialRunner:
    """A runner as Hydra sets one up for a multirun."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3", job_name="train"):
        loader = GlobalHydra.instance().config_loader()
        line = [*overrides, f"hydra.sweep.dir={folder}"]
        config = loader.load_configuration("train", line, run_mode=RunMode.MULTIRUN)
    with open_dict(config):
        config.hydra.runtime.output_dir = "run"
    context = SimpleNamespace(config_loader=loader)
    plugin = SimpleNamespace(config=config, hydra_context=context, parallel=parallel, gpus_per_trial=gpus_per_trial)
    plugin.task_function = train.main
    HydraConfig.instance().set_config(config)
    return TrialRunner(plugin)


def test_a_trial_has_its_own_overrides_and_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["kikitori", "-m", "data=demo", "optim.lr=1e-5,3e-5", "resume_sweep=x"])
    trial, cfg = runner(tmp_path, "data=demo").compose(3, ["data=demo", "optim.lr=3e-5", "resume_sweep=x"])
    assert (trial.number, trial.folder, trial.swept) == (3, "3-optim.lr-3e-5", {"optim.lr": "3e-5"})
    assert trial.overrides == ["data=demo", "optim.lr=3e-5"]
    assert cfg["optim"]["lr"] == 3e-5
    assert cfg["logger"]["wandb"]["folder"] == f"{tmp_path}/3-optim.lr-3e-5"
    assert "hydra" not in cfg


def test_a_sweep_from_a_file_names_the_folders_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["kikitori", "data=demo", "sweep=size"])
    trial, cfg = runner(tmp_path, "data=demo", "sweep=size").compose(
        0, ["sweep=size", "data=demo", "model=whisper_tiny"]
    )
    assert trial.folder == "0-model-whisper_tiny"
    assert cfg["model"]["name"] == "openai/whisper-tiny"


def gpus(trial_runner: TrialRunner, slots: int) -> list[str | None]:
    return [trial_runner._env(slot).get("CUDA_VISIBLE_DEVICES") for slot in range(slots)]


def test_gpus_are_assigned_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus(runner(tmp_path), 4) == ["0", "1", "2", "3"]
    assert runner(tmp_path, gpus_per_trial=2).parallel == 2
    assert gpus(runner(tmp_path, gpus_per_trial=2), 2) == ["0,1", "2,3"]
    assert gpus(runner(tmp_path, parallel=6), 6) == ["0", "1", "2", "3", "0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert gpus(runner(tmp_path), 2) == ["5", "7"]


def test_a_trial_has_the_threads_of_a_single_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The last digits of its weights depend on them."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("kikitori.sweeps.launcher.cores", lambda: 8)
    caplog.set_level("INFO")
    for parallel in (1, 3):
        with runner(tmp_path / str(parallel), parallel=parallel).open() as opened:
            assert "OMP_NUM_THREADS" not in opened._env(0)
            opened.run([])
    (hint,) = [record.getMessage() for record in caplog.records if "OMP_NUM_THREADS" in record.getMessage()]
    assert hint.startswith("3 trials at a time share 8 cores")
    assert "OMP_NUM_THREADS=2 is faster" in hint
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert runner(tmp_path, parallel=3)._env(0)["OMP_NUM_THREADS"] == "5"


def test_invalid_configurations_are_refused_before_any_trial_starts(tmp_path: Path) -> None:
    sweep = runner(tmp_path, "data=demo")
    bad = [sweep.compose(number, ["data=demo", f"optim.lr={lr}"])[1] for number, lr in enumerate((-1, -1, -2))]
    with pytest.raises(ConfigError) as caught:
        sweep.prepare(bad)
    assert str(caught.value).count("problem") == 2
    assert "trial 0: 1 problem in the configuration\n  optim.lr: must be above 0, got -1" in str(caught.value)
    assert "trial 2: " in str(caught.value)


def test_each_corpus_is_decoded_once_before_the_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    monkeypatch.setattr("kikitori.Demo.decode", lambda data: decoded.append(data.limit["train"]))
    demo = runner(tmp_path, "data=demo")
    lines = [["data.limit.train=3", "seed=0"], ["data.limit.train=3", "seed=1"], ["data.limit.train=4", "seed=0"]]
    demo.prepare([demo.compose(i, ["data=demo", *line])[1] for i, line in enumerate(lines)])
    assert decoded == [3, 4]


def test_a_sweep_is_locked_against_a_second_process(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / ".lock")
    with lock, pytest.raises(SweepError, match="is in use by another process"), runner(tmp_path).open():
        pass


def test_processes_left_by_a_killed_trial_are_killed(tmp_path: Path) -> None:
    trial_runner = runner(tmp_path)
    trial_runner.sweep = Sweep(tmp_path, [])
    (tmp_path / "t").mkdir()
    line = ["sh", "-c", "sleep 100 & echo $!; exec sleep 100"]
    leader: Any = subprocess.Popen(line, stdout=subprocess.PIPE, start_new_session=True)
    orphan = Path(f"/proc/{int(leader.stdout.readline())}/stat")
    leader.kill()
    leader.wait()
    assert orphan.exists()
    trial = trial_runner.sweep.add(Trial(0, "t", [], {}))
    trial_runner._end(Process(trial, leader, 0.0, 0.0))
    end = time.monotonic() + 10
    while orphan.exists() and orphan.read_text().split(")")[1].split()[0] != "Z":
        assert time.monotonic() < end
    assert trial.reason == "killed by SIGKILL (out of memory?)"


def test_more_gpus_per_trial_than_there_are_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.gpus_per_trial=5: must be at most 4"):
        runner(tmp_path, gpus_per_trial=5)


@pytest.mark.parametrize(
    ("devices", "gpus_per_trial", "accelerator", "fits"),
    [(1, 1, "auto", True), (1, 2, "auto", False), (4, 2, "gpu", False), (1, 2, "cpu", True), ("auto", 2, "gpu", True)],
)
def test_a_trial_uses_all_of_its_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: Any, gpus_per_trial: int, accelerator: str, fits: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    cfg = OmegaConf.create({"trainer": {"devices": devices, "accelerator": accelerator}})
    with (
        nullcontext() if fits else pytest.raises(ConfigError, match=f"gpus_per_trial={gpus_per_trial}, but each trial")
    ):
        runner(tmp_path, gpus_per_trial=gpus_per_trial)._check_devices(cfg)


def test_a_sweep_without_trials_is_refused() -> None:
    with pytest.raises(ConfigError, match="no trials: one of its axes is empty"):
        launch(None, [], 0)


def test_another_configuration_folder_is_passed_to_the_trials(tmp_path: Path) -> None:
    assert config_options(runner(tmp_path).config.hydra, "train") == []
    other = runner(tmp_path)
    with read_write(other.config.hydra.runtime):
        main = next(source for source in other.config.hydra.runtime.config_sources if source.provider == "main")
        main.path = "/other/conf"
    assert config_options(other.config.hydra, "train") == ["--config-path", "/other/conf"]
