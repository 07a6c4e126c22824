"""Measures start-up times: each real command until it ends, and the part that each trial of a sweep repeats.

    python benchmarks/startup.py        # medians of three runs; takes some minutes
    python benchmarks/startup.py 5      # medians of five runs

CPU time includes all child processes and hardly depends on other load; wall time does. The trial has as few scores and
steps as possible, so that its time is the fixed cost of every trial.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

FEW = ["generation.max_new_tokens=4", "data.limit={train: 8, validation: 8, test: 8}", "score.train_clips=2"]
TRIAL = ["experiment=demo", "logger=none", "trainer.max_steps=2", *FEW]
SEEDS = "seed=0,1,2,3,4,5"


def seconds(line: list[str], folder: Path, code: int = 0) -> tuple[float, float]:
    """Returns the wall and CPU seconds of a command, children included. code: the expected exit code."""
    environment = {**os.environ, "KIKITORI_CACHE": str(folder / "cache"), "HYDRA_FULL_ERROR": "0"}
    words = [sys.executable, "-m", "kikitori", *line]
    with (folder / "output.log").open("w") as output:
        began = time.perf_counter()
        process = subprocess.Popen(words, cwd=folder, env=environment, stdout=output, stderr=output)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != code:
        raise RuntimeError(f"{line} ended with {process.returncode}:\n{(folder / 'output.log').read_text()}")
    return wall, used.ru_utime + used.ru_stime


def measured(name: str, line: list[str], folder: Path, runs: int, code: int = 0) -> None:
    """Prints the medians of some runs. # in a line is replaced by the number of the run."""
    lines = [[word.replace("#", str(i)) for word in line] for i in range(runs)]
    wall, cpu = zip(*(seconds(words, folder, code) for words in lines), strict=True)
    print(f"| {name} | {median(wall):.2f} | {median(cpu):.2f} |", flush=True)


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Decodes the clips, and loads the packages into the page cache.
        seconds(["train", *TRIAL, "hydra.run.dir=warm"], folder)
        print("| command | wall s | CPU s |\n| --- | ---: | ---: |")
        for line in ("--help", "train --help", "transcribe --help", "compare warm"):
            measured(line, line.split(), folder, runs)
        measured("train, refused for a wrong value", ["train", *TRIAL, "optim.lr=-1"], folder, runs, code=1)
        measured("evaluate", ["evaluate", "checkpoint=warm", "data=demo", "splits=[test]", *FEW], folder, runs)
        measured("train", ["train", *TRIAL, "hydra.run.dir=trial-#"], folder, runs)
        costs = [json.loads(path.read_text())["cost"] for path in folder.glob("trial-*/results.json")]
        for key in ("prepare_s", "evaluate_s", "fit_s"):
            print(f"| {key} of it | {median(cost[key] for cost in costs):.2f} | |")
        measured("train -m, 6 trials", ["train", "-m", *TRIAL, SEEDS, "hydra.sweep.dir=sweep-#"], folder, runs)


if __name__ == "__main__":
    main()
