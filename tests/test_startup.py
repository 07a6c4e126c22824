"""What a start must not wait for. `benchmarks/startup.py` measures what it does."""

import subprocess
import sys

import pytest

# Each takes a tenth of a second to a whole one, and is wanted on some paths only.
SOME_PATHS = {"datasets", "pandas", "wandb", "tensorboard", "plotly", "optuna", "submitit", "IPython"}
HEAVY = {"torch", "transformers", "pytorch_lightning", "pyarrow", *SOME_PATHS}


def loaded(*lines: str) -> set[str]:
    """Top-level packages that a Python has loaded after some lines."""
    code = "\n".join([*lines, "import sys", "print(*sys.modules)"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize("command", ["", "train", "evaluate", "prepare", "transcribe", "compare"])
def test_a_command_tells_its_help_before_it_loads_anything_heavy(command: str) -> None:
    line = f"sys.argv = ['kikitori', *{command!r}.split(), '--help']"
    helped = ["import sys", "from kikitori.cli import main", line, "try: main.main()", "except SystemExit: pass"]
    assert not HEAVY & loaded(*helped)


def test_a_process_that_decodes_loads_soundfile_and_numpy_alone() -> None:
    packages = loaded("import kikitori.audio.decoder_process")
    assert {"soundfile", "numpy"} < packages
    assert not packages & {*HEAVY, "hydra", "omegaconf", "rich"}


def test_a_trial_loads_only_what_every_trial_needs() -> None:
    packages = loaded("import kikitori.pipelines.train, kikitori.sweeps.launcher")
    assert "pytorch_lightning" in packages
    assert not SOME_PATHS & packages
