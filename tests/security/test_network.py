"""What the processes of a run on one machine open to others: sockets on the loopback interface, and no pickles."""

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kikitori.runtime import distributed
from kikitori.training.trainer import Ddp, ddp, resolve_trainer_settings

SMALL = [
    *(
        "experiment=demo",
        "guard.clips=0",
        "model.d_model=32",
        "model.encoder_layers=1",
        "model.decoder_layers=1",
        "logger=none",
    ),
    *("data.limit={train: 8, validation: 2, test: 2}", "score.train_clips=2", "generation.max_new_tokens=4"),
    *("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.max_steps=2", "validation.every_steps=2"),
]
LISTENS = "0A"
# Beginnings of an address in /proc/net/tcp and tcp6: 127.x.x.x, ::1 and ::ffff:127.x.x.x with each word reversed.
LOOPBACK = ("7F", "00000000000000000000000001000000", "0000000000000000FFFF0000")


def processes(pid: int) -> list[int]:
    """A process and all that it started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in map(int, children) for one in processes(child))]


def sockets(pid: int) -> set[str]:
    """The inodes of a process's sockets."""
    links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]
    return {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}


def listening(pid: int) -> set[str]:
    """The addresses on which a process and all that it started listen, as in /proc/net."""
    own = set().union(*map(sockets, processes(pid)))
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == LISTENS and row[9] in own}


def is_loopback(address: str) -> bool:
    return address[6:8] == "7F" if len(address) == 8 else address == LOOPBACK[1] or address.startswith(LOOPBACK[2])


def test_loopback_addresses_are_recognised() -> None:
    assert all(map(is_loopback, ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")))
    assert not any(map(is_loopback, ("00000000", "0" * 32, "0201A8C0", "B80D01200000000067452301EFCDAB89")))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_processes_of_a_run_listen_on_the_loopback_interface_only(tmp_path: Path) -> None:
    line = [sys.executable, "-P", "-m", "kikitori", "train", *SMALL, "hydra.run.dir=run"]
    settings = {"KIKITORI_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    run = subprocess.Popen(line, cwd=tmp_path, env={**os.environ, **settings}, stdout=subprocess.DEVNULL)
    seen: set[str] = set()
    while run.poll() is None:
        try:
            seen |= listening(run.pid)
        except OSError:  # a process ended meanwhile
            continue
        for place in tmp_path.glob("kikitori-*"):
            assert place.stat().st_mode & 0o077 == 0
        time.sleep(0.2)
    assert run.returncode == 0
    assert seen  # both talked
    assert all(map(is_loopback, seen)), seen
    assert not list(tmp_path.glob("kikitori-*"))


class Trap:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("sprung",)


@pytest.fixture
def one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process group of this process alone, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "meeting"), 1), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_plain_values_are_gathered_as_they_are() -> None:
    value = {1: [("カレー", 1.5, True, None)], "states": torch.arange(5), "nan": [float("inf"), 2**70]}
    (gathered,) = distributed.all_gather(value)
    assert str(gathered) == str(value)
    assert ddp().broadcast({"folder": "a"}) == {"folder": "a"}


@pytest.mark.usefixtures("one_process")
def test_a_pickle_of_another_process_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "save", lambda value, file: file.write(pickle.dumps(value)))
    for share in (distributed.all_gather, ddp().broadcast):
        with pytest.raises(pickle.UnpicklingError):
            share(Trap())
    assert not Path("sprung").exists()


@pytest.mark.parametrize("strategy", ["auto", "ddp", None])
def test_several_devices_always_use_our_strategy(strategy: str | None) -> None:
    given = {"accelerator": "cpu", "devices": 2, "precision": "auto", "strategy": strategy}
    assert resolve_trainer_settings(given, 0)[0]["strategy"] == {"_target_": "kikitori.ddp"}
    assert type(ddp()) is Ddp
