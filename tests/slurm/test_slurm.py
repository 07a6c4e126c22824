"""Sweeps on a real Slurm with two virtual nodes on this machine, which tests/slurm/cluster.py starts."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import cluster, missing

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]

SMALL = [
    *(
        "experiment=demo",
        "guard.clips=0",
        "model.d_model=32",
        "model.encoder_layers=1",
        "model.decoder_layers=1",
        "optim.lr=3e-3",
    ),
    *("data.limit={train: 11, validation: 5, test: 3}", "validation.every_steps=20", "generation.max_new_tokens=20"),
    *("logger=none", "score.train_clips=3", "optim.warmup_steps=1", "trainer.max_steps=40"),
]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    cache = tmp_path_factory.mktemp("cache")
    with cluster() as environment:
        # The names of the virtual nodes do not resolve to an address.
        more = {"MASTER_ADDR": "127.0.0.1", "KIKITORI_CACHE": str(cache), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
        yield {**environment, **more}


def sweep(folder: Path, slurm: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kikitori", "train", "-m", *SMALL, *SLURM, f"hydra.sweep.dir={folder}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder.parent, env=slurm, timeout=400)


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def job_logs(folder: Path) -> str:
    """Return the output of the Slurm jobs."""
    return "\n".join(f"{path}:\n{path.read_text()}" for path in sorted(folder.glob(".submitit/**/*_log.*")))


def test_the_trials_of_a_sweep_are_jobs_and_a_failed_one_stops_no_other(slurm: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    done = sweep(folder, slurm, "optim.lr=3e-3,1e30,1e-3")
    states = {path.parent.name: results(path.parent)["status"] for path in folder.glob("*/results.json")}
    names = ("0-optim.lr-0.003", "1-optim.lr-1e+30", "2-optim.lr-0.001")
    assert states == dict(zip(names, ("completed", "failed", "completed"), strict=True)), job_logs(folder)
    assert done.returncode == 1
    assert " is nan" in done.stderr
    assert "Traceback" not in done.stderr
    assert "optim.lr=0.003" in " ".join(results(folder / names[0])["overrides"])


def test_two_tasks_on_one_node_and_on_two_nodes_give_the_scores_of_one_process(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "kikitori", "train", *SMALL, f"hydra.run.dir={tmp_path / 'alone'}"]
    subprocess.run(command, check=True, cwd=tmp_path, env=slurm, capture_output=True)
    shapes = {"node": ["trainer.devices=2"], "nodes": ["trainer.devices=1", "trainer.num_nodes=2"]}
    for shape, settings in shapes.items():
        folder = tmp_path / shape
        done = sweep(folder, slurm, "trainer=ddp", *settings)
        assert done.returncode == 0, done.stderr + job_logs(folder)
        (run,) = (path.parent for path in folder.glob("*/results.json"))
        assert results(run)["scores"] == results(tmp_path / "alone")["scores"]
        assert results(run)["cost"]["devices"] == 2
        losses, expected = ([row["train/loss"] for row in results(r)["history"]] for r in (run, tmp_path / "alone"))
        assert losses == pytest.approx(expected, rel=1e-4)
        # Only one process logs.
        assert (run / "train.log").read_text().count("scoring test after training") == 1


def test_a_task_that_is_killed_ends_the_trial_on_the_other_node(slurm: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["srun", "--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1", sys.executable, "-m", "kikitori"]
    endless = ["trainer=ddp", "trainer.devices=1", "trainer.num_nodes=2", "trainer.max_steps=100000"]
    command += ["train", *SMALL, *endless, f"hydra.run.dir={run}"]
    with subprocess.Popen(command, cwd=tmp_path, env=slurm, stderr=subprocess.PIPE, text=True) as step:
        while not list(run.glob("checkpoints/step-*.ckpt")):
            assert step.poll() is None, step.communicate()[1]
            time.sleep(0.2)
        (victim,) = (pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if is_task(pid, run, 1))
        os.kill(victim, 9)
        begun = time.monotonic()
        step.communicate()
        took = time.monotonic() - begun
    print(f"ended {took:.1f} s after task 1 was killed")
    assert took < 60
    assert step.returncode != 0
    assert not [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if is_task(pid, run, 0)]


def test_a_run_with_one_slurm_task_starts_its_other_processes_itself(slurm: dict[str, str], tmp_path: Path) -> None:
    """Slurm has one task and the run two devices: Lightning would take the task for the whole run."""
    run = tmp_path / "run"
    line = [
        sys.executable,
        "-m",
        "kikitori",
        "train",
        *SMALL,
        "trainer=ddp",
        "trainer.devices=2",
        f"hydra.run.dir={run}",
    ]
    log = tmp_path / "log"
    command = ["sbatch", "--wait", "--ntasks=1", "--cpus-per-task=2", f"--output={log}", "--wrap", shlex.join(line)]
    done = subprocess.run(command, cwd=tmp_path, env=slurm, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + log.read_text()
    assert results(run)["cost"]["devices"] == 2


def test_a_requeued_job_resumes(slurm: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    command = [sys.executable, "-m", "kikitori", "train", "-m", *SMALL, *SLURM, f"hydra.sweep.dir={folder}"]
    command += ["trainer.max_steps=400", "validation.every_steps=20"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, env=slurm, text=True, **quiet) as driver:
        while not (checkpoints := list(folder.glob("*/checkpoints/step-*.ckpt"))):
            assert driver.poll() is None, driver.communicate()[1]
            time.sleep(0.1)
        listed = subprocess.run(["squeue", "-h", "-o", "%i"], env=slurm, capture_output=True, text=True, check=True)
        subprocess.run(["scontrol", "requeue", listed.stdout.strip()], env=slurm, check=True)
        errors = driver.communicate()[1]
    assert driver.returncode == 0, errors + job_logs(folder)
    run = checkpoints[0].parents[1]
    assert "resuming from" in job_logs(folder)
    assert results(run)["status"] == "completed"
    assert [row["step"] for row in results(run)["history"]] == list(range(20, 401, 20))


def wait_for_checkpoint(folder: Path, driver: subprocess.Popen[str]) -> Path:
    while not (checkpoints := list(folder.glob("**/checkpoints/last.ckpt"))):
        assert driver.poll() is None, driver.communicate()[1]
        time.sleep(0.1)
    return checkpoints[0].parents[1]


def restarts(job: str, slurm: dict[str, str]) -> str:
    shown = subprocess.run(["scontrol", "show", "job", "-o", job], env=slurm, capture_output=True, text=True).stdout
    return next(word for word in shown.split() if word.startswith("Restarts="))


def test_a_job_at_its_time_limit_saves_and_is_requeued_once(slurm: dict[str, str], tmp_path: Path) -> None:
    """Both tasks get the signal that precedes a time limit or a preemption; submitit requeues the job."""
    folder = tmp_path / "sweep"
    command = [sys.executable, "-m", "kikitori", "train", "-m", *SMALL, *SLURM, f"hydra.sweep.dir={folder}"]
    command += ["trainer=ddp", "trainer.devices=2", "trainer.max_steps=300", "validation.every_steps=100"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, env=slurm, text=True, **quiet) as driver:
        run = wait_for_checkpoint(folder, driver)
        listed = subprocess.run(["squeue", "-h", "-o", "%i"], env=slurm, capture_output=True, text=True, check=True)
        (job,) = set(listed.stdout.split())
        subprocess.run(["scancel", "--signal=USR2", job], env=slurm, check=True)
        errors = driver.communicate()[1]
    assert driver.returncode == 0, errors + job_logs(folder)
    assert restarts(job, slurm) == "Restarts=1", job_logs(folder)
    assert "stopped by SIGUSR2" in job_logs(folder)
    assert "resuming from last.ckpt" in job_logs(folder)
    assert results(run)["status"] == "completed"
    assert [row["step"] for row in results(run)["history"]] == [100, 200, 300]


@pytest.mark.parametrize(("number", "back"), [("USR1", True), ("TERM", False)])
def test_a_users_own_script_is_requeued_at_its_time_limit_but_not_when_cancelled(
    slurm: dict[str, str], tmp_path: Path, number: str, back: bool
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    line = ["srun", sys.executable, "-m", "kikitori", "train", *SMALL, "trainer.max_steps=300"]
    line += ["validation.every_steps=100", f"hydra.run.dir={run}", "resume=auto"]
    command = ["sbatch", "--wait", "--requeue", "--open-mode=append", f"--output={log}", "--wrap", shlex.join(line)]
    with subprocess.Popen(command, cwd=tmp_path, env=slurm, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        job = driver.stdout.readline().split()[-1]
        wait_for_checkpoint(run, driver)
        subprocess.run(["scancel", f"--signal={number}", job], env=slurm, check=True)
        driver.communicate()
    assert restarts(job, slurm) == f"Restarts={int(back)}", log.read_text()
    assert driver.returncode == (0 if back else 143), log.read_text()
    assert results(run)["status"] == ("completed" if back else "failed")
    assert f"stopped by SIG{number}" in log.read_text()


def is_task(pid: int, run: Path, rank: int) -> bool:
    """Return whether a process is the run's task of this rank."""
    try:
        line, environment = (Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
    except OSError:
        return False
    return f"hydra.run.dir={run}".encode() in line and f"SLURM_PROCID={rank}\0".encode() in environment
