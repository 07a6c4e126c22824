"""The number of processes and the rank, read from the environment variables that srun and torchrun set."""

from pathlib import Path

import pytest

from kikitori.config.overrides import tasks
from kikitori.runtime import distributed
from kikitori.runtime.errors import ConfigError
from kikitori.training.trainer import check_batch_size

NAMES = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_NTASKS")


@pytest.mark.parametrize(
    ("environment", "world_size", "rank"),
    [
        ({}, 1, 0),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4", "SLURM_PROCID": "3"}, 4, 3),
        # A script of sbatch or a shell of salloc: the allocation has tasks, but this process is none of them.
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, 1, 0),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, 1, 0),
        # torchrun, on the second of two machines with two devices each.
        ({"LOCAL_RANK": "1", "RANK": "3", "WORLD_SIZE": "4"}, 4, 3),
        # A process that kikitori started inside a Slurm task.
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, 2, 1),
    ],
)
def test_world_size_and_rank_are_right_for_srun_torchrun_and_our_own_processes(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], world_size: int, rank: int
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (distributed.world_size(), distributed.rank()) == (world_size, rank)


def run_on(devices: int, nodes: int) -> None:
    with distributed.run_on_all_devices("train", {}, Path(), devices, nodes, print):
        pass


def test_a_number_of_processes_other_than_one_per_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "1")
    for devices, nodes in ((1, 1), (2, 1), (4, 2)):
        with pytest.raises(ConfigError, match=f"4 processes were started, but trainer.devices={devices} on"):
            run_on(devices, nodes)


def test_several_machines_are_refused_unless_their_processes_exist() -> None:
    with pytest.raises(ConfigError, match="the processes on several machines are started by Slurm"):
        run_on(2, 2)


def test_a_global_batch_that_does_not_divide_by_the_devices_is_refused() -> None:
    check_batch_size(24, devices=2, nodes=3)
    with pytest.raises(ConfigError, match=r"data\.global_batch_size=20 is not divisible by 6 = 2 devices x 3 nodes;"):
        check_batch_size(20, devices=2, nodes=3)


def test_slurm_needs_a_number_of_devices() -> None:
    assert tasks(8) == 8
    with pytest.raises(ConfigError, match="Slurm needs a number"):
        tasks("auto")
