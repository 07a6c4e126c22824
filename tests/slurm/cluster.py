"""Starts a Slurm with two virtual nodes here; `python tests/slurm/cluster.py COMMAND ...` runs a command in it.

Needs root and Debian's packages: apt-get install --no-install-recommends slurm-wlm munge. A requeued job waits until
its credential has expired, so cred_expire is short.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sinfo", "srun", "sbatch")
CONFIG = """\
ClusterName=kikitori
SlurmctldHost={host}
SlurmctldPort=17000
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerType=sched/builtin
KillWait=5
ReturnToService=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port=17001 CPUs={cpus}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port=17002 CPUs={cpus}
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Return the reason why Slurm cannot run here, or None."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    absent = [program for program in PROGRAMS if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")]
    return f"{', '.join(absent)} not installed (packages slurm-wlm and munge)" if absent else None


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """Start Slurm, yield the environment variables for its commands, and stop it at the end."""
    # A short path, because Slurm refuses long socket paths.
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, ExitStack() as started:
        folder = Path(name)
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        folder.chmod(0o755)
        (folder / "state").mkdir()
        config = folder / "slurm.conf"
        host = socket.gethostname().split(".")[0]
        config.write_text(CONFIG.format(host=host, folder=folder, cpus=max(2, os.cpu_count() or 2)))
        environment = {**os.environ, "SLURM_CONF": str(config), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
        munged = [f"--socket={folder}/munge.socket", f"--key-file={key}", f"--pid-file={folder}/munged.pid"]
        munged += [f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed", "--force", "--foreground"]
        for command in (["munged", *munged], ["slurmctld", "-D"], *(["slurmd", "-D", "-N", n] for n in ("n1", "n2"))):
            log = started.enter_context((folder / f"{command[0]}.out").open("a"))
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            started.callback(_end, process)
            time.sleep(0.5)
        _wait_until_idle(environment, folder)
        yield environment


def _wait_until_idle(environment: dict[str, str], folder: Path) -> None:
    listed = ""
    for _ in range(60):
        listed = subprocess.run(["sinfo", "-hN", "-o", "%T"], capture_output=True, text=True, env=environment).stdout
        if listed.split() == ["idle", "idle"]:
            return
        time.sleep(0.5)
    logs = "\n".join(
        f"{path.name}: {path.read_text()[-800:]}" for path in folder.iterdir() if path.suffix in (".log", ".out")
    )
    raise RuntimeError(f"Slurm's nodes did not come up: {listed}\n{logs}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    if reason := missing():
        sys.exit(reason)
    with cluster() as environment:
        code = subprocess.run(sys.argv[1:], env=environment).returncode
    sys.exit(code)
