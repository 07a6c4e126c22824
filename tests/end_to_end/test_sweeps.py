"""Sweeps as users run them: real trials in real processes, some of which raise, are killed or are stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest

from kikitori.runtime.files import read_json
from kikitori.sweeps.optuna_study import Journal

pytestmark = pytest.mark.slow

TINY = [
    *(
        "experiment=demo",
        "guard.clips=0",
        "model.d_model=32",
        "model.encoder_layers=1",
        "model.decoder_layers=1",
        "logger=none",
    ),
    *("data.limit={train: 20, validation: 5, test: 5}", "generation.max_new_tokens=8", "score.train_clips=5"),
    *("optim.warmup_steps=2", "optim.lr=3e-3", "hydra.launcher.parallel=2"),
]
# Maximum durations. Training clips take 1 to 3 s: the first rejects too many of them, the second none.
RAISES, RUNS = 0.5, 9


def start(cache: Path, *arguments: str, given: Sequence[str] = TINY) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "kikitori", "train", "-m", *given, *arguments]
    environment = {**os.environ, "KIKITORI_CACHE": str(cache), "NO_COLOR": "1"}
    pipe: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=cache, env=environment, **pipe)


def sweep(cache: Path, *arguments: str, given: Sequence[str] = TINY) -> tuple[int, str]:
    process = start(cache, *arguments, given=given)
    output, _ = process.communicate(timeout=600)
    return process.returncode, output


def trials(folder: Path) -> dict[int, dict[str, Any]]:
    return {trial["number"]: trial for trial in read_json(folder / "sweep.json")["trials"]}


def states(folder: Path) -> Counter[str]:
    return Counter(trial["state"] for trial in trials(folder).values())


def until(true: Callable[[], Any], seconds: float = 90) -> Any:
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)
    return value


def processes(text: str) -> list[int]:
    """Return the ids of the processes with this text in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes().replace(b"\0", b" "):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def trial_process(folder: Path, number: int) -> int:
    """Wait until a trial has saved a checkpoint; returns the id of its process."""

    def ready() -> int | None:
        if not (folder / "sweep.json").exists() or number not in trials(folder):
            return None
        name = trials(folder)[number]["folder"]
        saved = (folder / name / "checkpoints/last.ckpt").exists()
        return next(iter(processes(f"hydra.run.dir={folder}/{name}")), None) if saved else None

    return int(until(ready))


def results(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/results.json"))}


def fails_alone(cache: Path, raising: int, running: int, kill: int, stop: int, repeat_command: bool) -> None:
    """The first trials raise, one is killed and one gets SIGTERM; then the sweep is resumed."""
    values = [RAISES + 0.01 * i for i in range(raising)] + [RUNS + i for i in range(running)]
    axis = f"data.max_duration_s={','.join(map(str, values))}"
    command = [axis, "trainer.max_steps=200", "validation.every_steps=20"]
    folder = cache / "sweep"
    process = start(cache, *command, f"hydra.sweep.dir={folder}")
    os.kill(trial_process(folder, kill), signal.SIGKILL)
    os.kill(trial_process(folder, stop), signal.SIGTERM)
    output, _ = process.communicate(timeout=600)
    lost = raising + 2
    assert process.returncode == 1
    assert f"{lost} of {raising + running} trials are not completed" in output
    assert states(folder) == {"completed": running - 2, "failed": lost}
    failed = {n: t["reason"] for n, t in trials(folder).items() if t["state"] == "failed"}
    assert list(failed) == sorted([*range(raising), kill, stop])
    assert all("data.max_reject_rate" in failed[n] for n in range(raising))
    assert failed[kill] == "killed by SIGKILL (out of memory?)"
    assert "SIGTERM" in failed[stop]
    assert all(str(folder / trials(folder)[n]["log"]) in output for n in failed)

    finished = {n: (folder / t["folder"] / "results.json") for n, t in trials(folder).items() if n not in failed}
    before = {n: (path.stat().st_mtime_ns, path.read_bytes()) for n, path in finished.items()}
    if repeat_command:
        code, output = sweep(cache, *command, f"resume_sweep={folder}")
    else:
        code, output = sweep(cache, f"resume_sweep={folder}", given=())
    assert code == 1
    assert f"{raising} of {raising + running} trials are not completed" in output
    started = sorted(int(line.split("trial ")[1].split()[0]) for line in output.splitlines() if " running" in line)
    assert started == sorted(failed)
    assert before == {n: (path.stat().st_mtime_ns, path.read_bytes()) for n, path in finished.items()}
    for number in (kill, stop):
        name = trials(folder)[number]["folder"]
        assert "resuming from" in (folder / name / "output.log").read_text()
        assert [row["step"] for row in results(folder)[name]["history"]] == list(range(20, 201, 20))
    # Resumed trials equal the others, because the trials differ only in a limit that rejects no clip.
    runs = [results(folder)[t["folder"]] for t in trials(folder).values() if t["state"] == "completed"]
    assert len(runs) == running
    assert all(run["history"] == runs[0]["history"] for run in runs)


@pytest.mark.long
def test_failed_trials_affect_no_others_and_the_sweep_resumes(tmp_path: Path) -> None:
    fails_alone(tmp_path, raising=1, running=3, kill=1, stop=2, repeat_command=False)


@pytest.mark.long
def test_of_ten_trials_the_five_failed_ones_are_run_again(tmp_path: Path) -> None:
    fails_alone(tmp_path, raising=3, running=7, kill=4, stop=6, repeat_command=True)


@pytest.mark.long
def test_a_stopped_sweep_stops_its_trials_and_refuses_other_arguments(tmp_path: Path) -> None:
    command = ["seed=0,1", "trainer.max_steps=4000", "validation.every_steps=20"]
    folder = tmp_path / "sweep"
    process = start(tmp_path, *command, f"hydra.sweep.dir={folder}")
    trial_process(folder, 0)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"stopped by SIGINT, 2 trials left; to resume: kikitori train -m resume_sweep={folder}" in output
    assert not processes(f"hydra.run.dir={folder}/")
    assert (
        "trial 0 was started with trainer.max_steps=4000"
        in sweep(tmp_path, "seed=0,1", "trainer.max_steps=8", f"resume_sweep={folder}")[1]
    )


@pytest.mark.long
def test_a_search_prunes_and_resumes_after_a_kill_without_losing_trials(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    command = [
        "hydra/sweeper=optuna",
        "hydra/sweeper/pruner=successive_halving",
        "hydra.sweeper.n_trials=5",
        f"hydra.sweep.dir={folder}",
    ]
    command += ["optim.lr=tag(log, interval(1e-4, 1e-1))", "trainer.max_steps=80", "validation.every_steps=10"]
    command += ["generation.max_new_tokens=12"]
    process = start(tmp_path, *command)
    until(lambda: (folder / "sweep.json").exists() and states(folder)["completed"] + states(folder)["pruned"] >= 2)
    trial_process(folder, 2)  # the next one: the last of those that are listed may have ended
    process.kill()
    process.wait()
    until(lambda: not processes(f"hydra.run.dir={folder}/"), 10)
    done = {n: t for n, t in trials(folder).items() if t["state"] in ("completed", "pruned")}
    code, output = sweep(tmp_path, *command, f"resume_sweep={folder}")
    assert code == 0, output
    assert not any(f"trial {n} " in line and " running" in line for n in done for line in output.splitlines())
    assert len(trials(folder)) == 5
    assert sum(states(folder)[state] for state in ("completed", "pruned")) == 5
    study = optuna.load_study(study_name="kikitori", storage=Journal(folder / "study.journal"))
    names = {"COMPLETE": "completed", "PRUNED": "pruned"}
    reported = {trial.user_attrs["number"]: names[trial.state.name] for trial in study.trials}
    assert reported == {n: t["state"] for n, t in trials(folder).items()}
    steps = [row["history"][-1]["step"] for row in results(folder).values() if row["history"]]
    assert sum(steps) < 5 * 80
    assert study.best_value == min(t["value"] for t in trials(folder).values() if t["state"] == "completed")


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["local", "basic"])
@pytest.mark.parametrize("sweeper", ["basic", "optuna"])
def test_all_processes_of_a_trial_train_its_own_values(tmp_path: Path, launcher: str, sweeper: str) -> None:
    """With different learning rates in two processes, no trial would match that of a single process."""
    parallel = [f"hydra/launcher={launcher}"] + ["hydra.launcher.parallel=1"] * (launcher == "local")
    how = [f"hydra/sweeper={sweeper}"]
    if sweeper == "optuna":
        how += ["hydra/sweeper/sampler=grid", "hydra.sweeper.n_trials=9", "hydra.sweeper.batch=1"]
    steps = ["trainer.max_steps=20", "validation.every_steps=10", "optim.lr=1e-3,1e-2"]
    line = [argument for argument in TINY if not argument.startswith(("optim.lr", "hydra.launcher"))]
    curves = {}
    two = ["trainer=ddp", "trainer.devices=2", *parallel, *how]
    for name, more in {"one": ["hydra/launcher=local"], "two": two}.items():
        command = [sys.executable, "-m", "kikitori", "train", "-m", *line, *steps, *more]
        command.append(f"hydra.sweep.dir={tmp_path / name}")
        environment = {**os.environ, "KIKITORI_CACHE": str(tmp_path), "NO_COLOR": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        runs = results(tmp_path / name).values()
        assert {run["cost"]["devices"] for run in runs} == {1 if name == "one" else 2}
        curves[name] = {run["config"]["optim"]["lr"]: [row["val/loss"] for row in run["history"]] for run in runs}
    assert curves["two"].keys() == curves["one"].keys() == {1e-3, 1e-2}
    for lr, losses in curves["one"].items():
        assert curves["two"][lr] == pytest.approx(losses, rel=1e-3)
    assert curves["one"][1e-3] != pytest.approx(curves["one"][1e-2], rel=1e-2)
