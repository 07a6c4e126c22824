"""Help, version and refusals of the command line, run as a user runs them."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from commands import kikitori

from kikitori import __version__
from kikitori.cli.main import COMMANDS, USAGE

REPOSITORY = Path(__file__).parents[2]


def test_the_usage_fits_80_columns() -> None:
    assert max(map(len, USAGE.splitlines())) <= 80


@pytest.mark.parametrize("line", [["--version"], ["train", "--version"], ["transcribe", "--version"]])
def test_version_prints_the_version_of_kikitori(tmp_path: Path, line: list[str]) -> None:
    done = kikitori(*line, cache=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"kikitori {__version__}\n")


def test_help_is_also_a_command(tmp_path: Path) -> None:
    assert kikitori("help", cache=tmp_path).stdout == kikitori("--help", cache=tmp_path).stdout == f"{USAGE}\n"
    assert kikitori("help", "prepare", cache=tmp_path).stdout.startswith("Decodes a corpus into the cache")


def test_a_misspelt_command_is_answered_with_the_closest_one(tmp_path: Path) -> None:
    done = kikitori("trian", cache=tmp_path)
    assert done.returncode == 1
    assert f"'trian' is not one of {', '.join(COMMANDS)}; did you mean train?" in done.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["optim.learning_rate=1"], "optim.learning_rate: no such key; did you mean optim.lr?\n"),
        (["model=whisper_smal"], "model=whisper_smal: no such choice; did you mean whisper_small? There are micro, "),
        (
            ["--max_steps", "3"],
            "kikitori: --max_steps is not an option; settings are given as key=value: trainer.max_steps=3\n",
        ),
        (
            ["data.global_batch=8", "accept=[seed]"],
            "kikitori: data.global_batch is now data.global_batch_size; accept is now resume_accept\n",
        ),
        (["experiment=article"], "kikitori: experiment=article is now experiment=tutorial_100_clips\n"),
    ],
)
def test_a_name_that_does_not_exist_is_refused_in_one_line(tmp_path: Path, line: list[str], message: str) -> None:
    done = kikitori("train", *line, cache=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_help_shows_choices_and_keys_with_their_comments(tmp_path: Path) -> None:
    done = kikitori("train", "--help", cache=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    text = done.stdout
    assert all(len(line) <= 80 for line in text.splitlines())
    for shown in (
        "  data=common_voice\n      corpus: common_voice, demo, hub, manifest\n",
        "  experiment=null\n      ready-made settings: demo, hf_fine_tune_whisper, tutorial_100_clips\n",
        "  hydra/launcher=local\n      how the trials of a sweep are run: basic, local, slurm",
        "  hydra/sweeper=basic\n      how their values are chosen: all combinations, or by Optuna: basic, optuna\n",
        "  hydra/sweeper/sampler=null\n      how Optuna chooses the values: cmaes, grid, random, tpe\n",
        "  hydra/sweeper/pruner=null\n      which trials Optuna ends early: hyperband, successive_halving\n",
        "  data.release=???\n      The .tar.gz as downloaded, ",
        "  data.micro_batch_size=null\n      Clips per forward pass on one device; ",
        "  model.language=${data.language}\n      Language of the prompt and of scoring, as a code or name; ",
        "  hydra.launcher.parallel=null\n      Trials at the same time; ",
        "???: must be given.",
    ):
        assert shown in text
    assert "_target_" not in text


def test_help_after_choices_shows_their_keys_and_values(tmp_path: Path) -> None:
    words = ["data=manifest", "optim.lr=0.5", "hydra/sweeper=optuna", "hydra/launcher=slurm"]
    text = kikitori("train", "-m", *words, "--help", cache=tmp_path).stdout
    assert "  data.manifest=???\n      One list, or one per split: " in text
    assert "data.release=???" not in text
    assert "  optim.lr=0.5\n      Learning rate after the warm-up.\n" in text
    assert "  hydra/sweeper/sampler=tpe\n" in text
    assert "  hydra.sweeper.n_trials=20\n      Trials of the whole study" in text
    assert "  hydra.launcher.timeout_min=1440\n      Minutes a job may take" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_help_of_prepare_has_its_own_groups_only(tmp_path: Path) -> None:
    text = kikitori("prepare", "--help", cache=tmp_path).stdout
    assert "  data=common_voice\n" in text
    assert "model=" not in text
    assert "hydra/sweeper" not in text


def test_help_has_the_choices_and_comments_of_the_users_own_files(tmp_path: Path) -> None:
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/own.yaml").write_text("# @package _global_\nnotes: a  # What it was for.\n")
    text = kikitori("train", "--config-dir", "mine", "experiment=own", "--help", cache=tmp_path).stdout
    assert "  experiment=own\n      ready-made settings: demo, hf_fine_tune_whisper, own, tutorial_100_clips\n" in text
    assert "  notes=a\n      What it was for.\n" in text


def test_hydras_own_help_is_unchanged(tmp_path: Path) -> None:
    text = kikitori("train", "--hydra-help", cache=tmp_path).stdout
    assert "--multirun,-m" in text
    assert "hydra/launcher: basic, local, slurm" in text


def test_help_into_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "kikitori", "train", "--help"]
    process = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


def test_one_split_needs_no_brackets(tmp_path: Path) -> None:
    done = kikitori("evaluate", "data=demo", "splits=test", "--cfg", "job", cache=tmp_path)
    assert "\nsplits:\n- test\n" in done.stdout


def test_the_working_folder_is_searched_last_and_only_for_classes_that_the_environment_names(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("Mine = dict\n")
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "strange.py").write_text("raise AssertionError\n")
    code = (
        "import sys, kikitori.cli.train; from hydra.core.plugins import Plugins; from kikitori.config import targets\n"
        "Plugins.instance(); before = list(sys.path); targets.locate('kikitori.adamw', 'optim')\n"
        "assert sys.path == before; targets.locate('mine.Mine', 'callbacks')\n"
        "print(sys.path[-1], sys.path[:-1] == before)"
    )
    # As the console script runs: without the working folder in the search path.
    line = [sys.executable, "-P", "-c", code]
    settings = {**os.environ, "KIKITORI_TARGETS": "mine.Mine"}
    done = subprocess.run(line, cwd=tmp_path, env=settings, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path} True\n"


@pytest.mark.slow
def test_a_wheel_has_the_configuration_and_its_help(tmp_path: Path) -> None:
    build = "import hatchling.build, sys; print(hatchling.build.build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", build, tmp_path], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wheel = tmp_path / done.stdout.splitlines()[-1]
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "unpacked")
    configuration = {f"kikitori/{path.relative_to(REPOSITORY)}" for path in REPOSITORY.glob("conf/**/*.yaml")}
    assert len(configuration) == 59
    assert configuration == {name for name in names if name.startswith("kikitori/conf/") and name.endswith(".yaml")}
    done = kikitori("train", "--help", cache=tmp_path, PYTHONPATH=str(tmp_path / "unpacked"))
    assert done.returncode == 0, done.stderr
    assert "  optim.lr=1e-05\n      Learning rate after the warm-up.\n" in done.stdout
    where = kikitori("train", "--info", "searchpath", cache=tmp_path, PYTHONPATH=str(tmp_path / "unpacked")).stdout
    assert f"file://{tmp_path}/unpacked/kikitori/conf" in where
