"""Contradictory command lines are refused before anything is written."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.utils import get_args_parser

from kikitori.cli import main
from kikitori.config import targets


def refusal(*arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main._refuse(list(arguments))
    return str(caught.value)


def test_a_launcher_without_a_sweep_is_refused() -> None:
    assert "nothing without -m" in refusal("train", "hydra/launcher=slurm")
    main._refuse(["train", "-m", "hydra/launcher=basic"])


def test_resuming_needs_a_run_or_a_sweep_to_resume(tmp_path: Path) -> None:
    assert "name it: hydra.run.dir=..." in refusal("train", "resume=auto")
    main._refuse(["train", "resume=auto", f"hydra.run.dir={tmp_path}"])
    assert "resumes a sweep; add -m" in refusal("train", f"resume_sweep={tmp_path}")
    main._refuse(["train", "-m", f"resume_sweep='{tmp_path}'"])
    main._refuse(["train", "sweep=size", f"resume_sweep={tmp_path}"])


def test_a_value_may_be_longer_than_a_file_name() -> None:
    main._refuse(["train", f"data.release={'x' * 5000}"])


def test_slurm_without_its_package_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "find_spec", lambda name: None)
    assert "pip install 'kikitori[slurm]'" in refusal("train", "-m", "hydra/launcher=slurm")


def test_processes_started_by_slurm_need_a_common_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert "2 processes train this run" in refusal("train", "data=demo")
    main._refuse(["train", "data=demo", "hydra.run.dir=run"])


def test_a_run_that_failed_at_once_may_be_replaced(tmp_path: Path) -> None:
    failed = {"status": "failed", "scores": {}}
    for results, is_refused in (
        (failed, False),
        ({**failed, "scores": {"before": {}}}, True),
        ({**failed, "status": "running"}, True),
        ({**failed, "status": "completed"}, True),
    ):
        (tmp_path / "results.json").write_text(json.dumps(results))
        if is_refused:
            assert "already holds a run; choose another folder" in refusal("train", f"hydra.run.dir={tmp_path}")
        else:
            main._refuse(["train", f"hydra.run.dir={tmp_path}"])
    (tmp_path / "results.json").write_text(json.dumps(failed))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").touch()
    assert "already holds a run" in refusal("train", f"hydra.run.dir={tmp_path}")
    (tmp_path / "results.json").write_text("{")
    assert "already holds a run" in refusal("train", f"hydra.run.dir={tmp_path}")


@pytest.mark.parametrize(("line", "code"), [(["train", "seed=1"], 1), (["train", "--help"], 0), (["compare", "a"], 0)])
def test_a_broken_pipe_fails_a_run_and_ends_what_only_prints(line: list[str], code: int) -> None:
    script = f"""
from types import SimpleNamespace
from kikitori.cli import main
def fail(): raise BrokenPipeError(32, "Broken pipe")
main.import_module = lambda name: SimpleNamespace(main=fail)
main._run({line[0]!r}, {line[1:]!r})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert ("Broken pipe" in done.stderr) == bool(code)


def test_a_secret_is_not_printed_by_the_refusal_of_an_old_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cret-s3cret")
    with pytest.raises(SystemExit) as caught:
        main._prepare_line("train", ["data={batch: 4, x: s3cret-s3cret}"])
    assert "MY_TOKEN" in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("command", main.HYDRA_COMMANDS)
def test_a_command_without_words_is_a_valid_line(command: str) -> None:
    assert main._prepare_line(command, []) == []


def test_a_value_in_japanese_needs_no_quotes(tmp_path: Path) -> None:
    words = [f"data.manifest={tmp_path}/録音 1/一覧.csv", "seed=0,1", "optim.lr=1e-3"]
    assert main._prepare_line("train", words) == [f"data.manifest='{tmp_path}/録音 1/一覧.csv'", *words[1:]]


def test_a_number_of_too_many_digits_is_a_text() -> None:
    digits = "9" * 5000
    assert main._prepare_line("train", [f"seed={digits}"]) == [f"seed='{digits}'"]


def test_options_may_stand_between_overrides(tmp_path: Path) -> None:
    line = ["data=demo", "-m", "seed=0,1", "--config-dir", str(tmp_path), "optim.lr=1"]
    read = get_args_parser().parse_args(main._prepare_line("train", line))
    assert (read.overrides, read.multirun, read.config_dir) == (
        ["data=demo", "seed=0,1", "optim.lr=1"],
        True,
        str(tmp_path),
    )


def test_hydras_options_are_accepted_where_argparse_checks_their_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python 3.14's does; one of Hydra's help texts is no string."""

    def check_help(self: argparse.ArgumentParser, action: argparse.Action) -> None:
        if action.help and "%" in action.help:
            raise ValueError("badly formed help string")

    monkeypatch.setattr(argparse.ArgumentParser, "_check_help", check_help, raising=False)
    add = argparse.ArgumentParser.add_argument

    def add_argument(self: argparse.ArgumentParser, *names: str, **how: Any) -> argparse.Action:
        action = add(self, *names, **how)
        self._check_help(action)  # type: ignore[attr-defined]
        return action

    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", add_argument)
    with pytest.raises(TypeError):
        get_args_parser()
    main._accept_hydras_help()
    assert "--shell-completion" in get_args_parser()._option_string_actions
    with pytest.raises(ValueError, match="badly formed"):
        argparse.ArgumentParser().add_argument("--a", help="100 %")


def test_a_run_that_is_resumed_from_elsewhere_reads_its_paths_where_it_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, there, here = (tmp_path / name for name in ("run", "there", "here"))
    for folder in (run, there, here):
        folder.mkdir()
    facts = {"command": "train", "overrides": ["data.manifest='録音/a.csv'"], "options": [], "cwd": str(there)}
    (run / "results.json").write_text(json.dumps(facts))
    monkeypatch.chdir(here)
    words = main._prepare_line("train", ["resume=../run"])
    assert words == ["data.manifest='録音/a.csv'", f"hydra.run.dir={run}", "resume=auto"]
    assert Path.cwd() == there
    # A path that is given now is relative to here.
    monkeypatch.chdir(here)
    words = main._prepare_line("train", ["resume=../run", "data.manifest=b.csv"])
    assert words == [f"data.manifest={here}/b.csv", f"hydra.run.dir={run}", "resume=auto"]


def test_a_class_of_ones_own_is_not_searched_where_a_record_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "there" / "strange.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["kikitori", "--version"])
    monkeypatch.setenv("KIKITORI_TARGETS", "strange.Callback")
    main.main()
    monkeypatch.chdir(tmp_path / "there")  # as a record says
    with pytest.raises(ImportError, match="No module named 'strange'"):
        targets.locate("strange.Callback", "callbacks")


def test_no_process_that_a_command_starts_imports_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Slurm job is started by submitit as python -m, in a folder that a record may name."""
    (tmp_path / "strange.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["kikitori", "--version"])
    line = [sys.executable, "-m", "strange"]
    assert subprocess.run(line).returncode == 0
    main.main()
    assert subprocess.run(line, stderr=subprocess.DEVNULL).returncode == 1


def test_a_sweep_that_is_resumed_from_elsewhere_runs_where_it_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    facts = {"command": ["kikitori", "train", "-m", "seed=0,1"], "cwd": str(tmp_path / "there"), "trials": []}
    (tmp_path / "sweep.json").write_text(json.dumps(facts))
    monkeypatch.chdir(tmp_path)
    words = main._prepare_line("train", ["resume_sweep=."])
    assert words == ["seed=0,1", f"resume_sweep={tmp_path}", f"hydra.sweep.dir={tmp_path}", "-m"]
    assert Path.cwd() == tmp_path / "there"


def test_null_is_no_folder_of_a_sweep() -> None:
    assert main._prepare_line("train", ["resume_sweep=null", "seed=1"]) == ["resume_sweep=null", "seed=1"]


def test_a_file_is_no_folder_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert refusal("train", f"hydra.run.dir={tmp_path}/a").endswith("/a is a file; give a folder")


def test_models_and_their_base_become_overrides() -> None:
    assert main._models("guard", ["a/b", "--against", "c", "seed=1"]) == ["checkpoint=a/b", "against=c", "seed=1"]
    assert main._models("average", ["a", "--against=c", "b", "~guard"]) == ["runs=[a,b]", "against=c", "~guard"]
    assert main._models("average", ["runs=[a]"]) == ["runs=[a]"]


def test_the_options_of_an_export_become_keys() -> None:
    words = ["a/b", "--to", "ggml,onnx", "--quantize=int8", "--check", "5", "seed=1"]
    assert main._models("export", words) == ["checkpoint=a/b", "to=[ggml,onnx]", "quantize=[int8]", "check=5", "seed=1"]
    with pytest.raises(SystemExit, match="--to: needs a value, such as --to ctranslate2,ggml"):
        main._models("export", ["a", "--to"])
    with pytest.raises(SystemExit, match="b: one model is exported at a time, a; formats are --to b"):
        main._models("export", ["a", "b"])
    with pytest.raises(SystemExit, match="--format is not an option"):
        main._models("export", ["a", "--format", "b"])


@pytest.mark.parametrize("option", [["--cfg", "job"], ["--config-dir", "mine"], ["-m"]])
def test_the_value_of_an_option_is_no_model(option: list[str]) -> None:
    assert main._models("guard", ["a", *option]) == ["checkpoint=a", *option]
    assert main._models("average", ["a", *option, "b"]) == ["runs=[a,b]", *option]


def test_a_second_model_and_a_missing_base_are_no_silent_choice() -> None:
    with pytest.raises(SystemExit, match="b: one model is compared, a; its base is --against b"):
        main._models("guard", ["a", "b"])
    with pytest.raises(SystemExit, match="--against: needs a value, such as --against openai/whisper-small"):
        main._models("guard", ["a", "--against"])
