"""Packages that must not be loaded at the start. `benchmarks/startup.py` measures start times."""

import subprocess
import sys

import pytest

# Each takes 0.1 to 1 s to import and is needed only by some commands and options.
SOME_PATHS = {"datasets", "pandas", "wandb", "tensorboard", "plotly", "optuna", "submitit", "IPython"}
HEAVY = {"torch", "transformers", "pytorch_lightning", "pyarrow", *SOME_PATHS}


def loaded(*lines: str) -> set[str]:
    """Return the top-level packages that a new Python process has loaded after some lines."""
    code = "\n".join([*lines, "import sys", "print(*sys.modules)"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize("command", ["", "train", "evaluate", "prepare", "transcribe", "demo", "compare", "push"])
def test_a_command_prints_its_help_before_it_loads_anything_heavy(command: str) -> None:
    line = f"sys.argv = ['kikitori', *{command!r}.split(), '--help']"
    helped = ["import sys", "from kikitori.cli import main", line, "try: main.main()", "except SystemExit: pass"]
    assert not HEAVY & loaded(*helped)


def test_transcribe_answers_a_wrong_path_before_it_loads_anything_heavy() -> None:
    line = "sys.argv = ['kikitori', 'transcribe', 'no-such.mp3', '--model', 'm']"
    answered = ["import sys", "from kikitori.cli import main", line, "try: main.main()", "except SystemExit: pass"]
    assert not HEAVY & loaded(*answered)


def test_a_decoder_process_loads_only_soundfile_and_numpy() -> None:
    packages = loaded("import kikitori.audio.decoder_process")
    assert {"soundfile", "numpy"} < packages
    assert not packages & {*HEAVY, "hydra", "omegaconf", "rich"}


def test_a_trial_loads_only_packages_that_every_trial_needs() -> None:
    packages = loaded("import kikitori.pipelines.train, kikitori.sweeps.launcher")
    assert "pytorch_lightning" in packages
    assert not SOME_PATHS & packages
