"""A benchmark task, and the child process that runs it: one per contender, phase and round.

Separate processes give separate memory figures, and no contender profits or suffers from what another left behind.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

# The program of the child process.
CHILD = Path(__file__).with_name("contender.py")
CONTENDERS = ("recipe", "fair", "full", "bucketed")
# Untimed first steps, which allocate the optimizer state and start the loader's workers.
WARMUP_STEPS = 1


@dataclass(frozen=True)
class Task:
    """The settings of a task, equal for all contenders except `contender` and `folder`.

    model: a folder or Hub name. release: a Common Voice language folder. folder: for the contender's files.
    train_clips, eval_clips: number of first clips of the train and dev tables to use. steps: timed steps, after
    WARMUP_STEPS. precision: as Lightning names it. max_new_tokens: of a transcript, without the prefix. overrides: of
    kikitori's configuration.
    """

    contender: str
    phase: Literal["prepare", "train"]
    model: str
    release: str
    folder: str
    train_clips: int
    eval_clips: int
    batch: int
    steps: int
    precision: str
    seed: int
    max_new_tokens: int
    overrides: tuple[str, ...] = ()

    @property
    def all_steps(self) -> int:
        """The number of training steps, warm-up included."""
        return WARMUP_STEPS + self.steps

    @property
    def path(self) -> Path:
        """The folder of this contender's files."""
        return Path(self.folder)


def run(task: Task) -> dict[str, Any]:
    """Prepares, then trains and evaluates, each in a separate process. Returns the measurements of both.

    `whole` is both processes from start to end: imports, preparation, all steps, evaluation. No checkpoint is saved.
    Raises RuntimeError with the last lines of the output if one fails.
    """
    start = time.perf_counter()
    measured = {**child(replace(task, phase="prepare")), **child(replace(task, phase="train"))}
    seconds = time.perf_counter() - start
    clips = task.all_steps * task.batch
    return {**measured, "whole": {"clips": clips, "seconds": seconds, "clips_per_s": clips / seconds}}


def child(task: Task) -> dict[str, Any]:
    """Runs one phase. Preparation runs on one core, so that its clips per second are those of a core."""
    task.path.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        # As in the command `kikitori`. OpenMP's default, a longer spin, would slow only contenders with workers.
        "GOMP_SPINCOUNT": "3000",
        "TOKENIZERS_PARALLELISM": "false",
        # One GPU only, or the stock Trainer would split its batch over all of them.
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],
        "HF_DATASETS_CACHE": str(task.path / "datasets"),
        "KIKITORI_CACHE": str(task.path / "cache"),
    }
    log = task.path / f"{task.phase}.log"
    with log.open("w", encoding="utf-8") as output:
        command = [sys.executable, str(CHILD), json.dumps(asdict(task))]
        failed = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT).returncode
    if failed:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise RuntimeError(f"{task.contender} failed to {task.phase}:\n{tail}")
    return json.loads((task.path / f"{task.phase}.json").read_text(encoding="utf-8"))
