"""Lines that cannot mean what they say are refused before anything is written."""

from pathlib import Path

import pytest

from kikitori.cli import main


def refusal(*arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main._refuse(list(arguments))
    return str(caught.value)


def test_a_launcher_without_a_sweep_is_refused() -> None:
    assert "nothing without -m" in refusal("train", "hydra/launcher=slurm")
    main._refuse(["train", "-m", "hydra/launcher=basic"])


def test_going_on_needs_something_to_go_on_with(tmp_path: Path) -> None:
    assert "name it: hydra.run.dir=..." in refusal("train", "resume=auto")
    main._refuse(["train", "resume=auto", f"hydra.run.dir={tmp_path}"])
    assert "resumes a sweep; add -m" in refusal("train", f"resume_sweep={tmp_path}")
    assert "holds no sweep.json" in refusal("train", "-m", f"resume_sweep={tmp_path}")
    (tmp_path / "sweep.json").write_text("{}")
    main._refuse(["train", "-m", f"resume_sweep='{tmp_path}'"])
    main._refuse(["train", "sweep=size", f"resume_sweep={tmp_path}"])


def test_a_word_too_long_for_a_file_name_is_no_trouble() -> None:
    main._refuse(["train", f"data.release={'x' * 5000}"])


def test_slurm_without_its_package_is_told_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "find_spec", lambda name: None)
    assert "pip install 'kikitori[slurm]'" in refusal("train", "-m", "hydra/launcher=slurm")


def test_processes_that_others_started_need_a_common_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert "2 processes train this run" in refusal("train", "data=demo")
    main._refuse(["train", "data=demo", "hydra.run.dir=run"])
