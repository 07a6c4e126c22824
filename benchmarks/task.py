"""A benchmark task, and the child process that runs it: one per contender, phase and round.

A process of its own gives fresh memory figures, and nothing that one contender warmed up or left behind helps or harms
the next.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

# The program of the child process.
CHILD = Path(__file__).with_name("contender.py")
CONTENDERS = ("recipe", "fair", "full", "bucketed")
# The step after which the clock runs: it allocates the optimizer's state, and starts the loader's workers.
WARMUP_STEPS = 1


@dataclass(frozen=True)
class Task:
    """The same for all contenders but for their name.

    model: a folder or Hub name. release: a Common Voice language folder. folder: where the contender's files go.
    train_clips, eval_clips: the first so many of the train and dev tables. steps: timed, after WARMUP_STEPS.
    precision: as Lightning names it. max_new_tokens: of a transcript, the prefix apart.
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

    @property
    def all_steps(self) -> int:
        """Steps of the training, the warm-up included."""
        return WARMUP_STEPS + self.steps

    @property
    def path(self) -> Path:
        """Where this contender's files go."""
        return Path(self.folder)


def run(task: Task) -> dict[str, Any]:
    """Prepare, then train and evaluate, each in a process of its own. Returns what both measured.

    Raises RuntimeError with the end of what the process printed, where one fails.
    """
    return {**child(replace(task, phase="prepare")), **child(replace(task, phase="train"))}


def child(task: Task) -> dict[str, Any]:
    """One phase. Preparation has one core to itself, so that clips a second are those of a core."""
    task.path.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        # As the command `kikitori` has it. A longer spin, which is OpenMP's own, would slow only who has workers.
        "GOMP_SPINCOUNT": "3000",
        "TOKENIZERS_PARALLELISM": "false",
        # Of several GPUs one, or the stock Trainer would share its batch among all.
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
        raise RuntimeError(f"{task.contender} could not {task.phase}:\n{tail}")
    return json.loads((task.path / f"{task.phase}.json").read_text(encoding="utf-8"))
