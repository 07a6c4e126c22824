"""Runs the trials of a sweep on this machine, each a plain process of its own, several at once.

A process a trial, in Hydra's RUN mode: what one does to its memory, its GPU or itself is no other's trouble.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from omegaconf import DictConfig, OmegaConf, flag_override, open_dict, read_write

from kikitori import board, experiment
from kikitori.config import check
from kikitori.errors import ConfigError, SweepError
from kikitori.paths import swept_values
from kikitori.run import plain, quieten
from kikitori.sweep import FINISHED, Sweep, Trial, open_sweep, settle

log = logging.getLogger(__name__)

LOOK_S = 0.2
# How long a trial may take to stop when told to, before it is killed.
GRACE_S = 20.0
# Overrides of Hydra's own that make a sweep of a run, and so have no place in a trial's command.
OF_THE_SWEEP = ("hydra.mode", "hydra.sweep", "hydra.run.dir", "hydra/launcher", "hydra.launcher", "hydra/sweeper")


def launch(plugin: Any, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Run a fixed list of trials: what Hydra's own sweepers ask of a launcher.

    Raises ConfigError before anything runs where a trial's configuration is wrong, SweepError after all is done where
    some failed.
    """
    with Machine(plugin).open() as machine:
        jobs = [machine.compose(first + i, list(overrides)) for i, overrides in enumerate(job_overrides)]
        machine.prepare([cfg for _, cfg in jobs])
        trials = [machine.sweep.add(trial) for trial, _ in jobs]
        machine.run(trials)
    return [_job_return(trial, cfg) for trial, (_, cfg) in zip(trials, jobs, strict=True)]


class Machine:
    """This machine as a place for trials: its slots, each with its share of the GPUs and CPU cores."""

    def __init__(self, plugin: Any) -> None:
        """plugin: any launcher of Hydra's; one that is not ours has its folders here alone."""
        self.config: DictConfig = plugin.config
        self.loader = plugin.hydra_context.config_loader
        self.folder = Path(self.config.hydra.sweep.dir)
        self.command = str(self.config.hydra.job.name)
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        self.gpus = [gpu for gpu in gpus.split(",") if gpu] if torch.cuda.device_count() else []
        self.gpus_per_trial = getattr(plugin, "gpus_per_trial", 1)
        self.parallel = getattr(plugin, "parallel", 1) or max(1, len(self.gpus) // max(1, self.gpus_per_trial))
        self.prepared: list[Any] = []

    @contextmanager
    def open(self) -> Iterator["Machine"]:
        """Hold the sweep's folder, so that no second process runs the same trials; at a good end, tell of failures."""
        setup_globals()
        quieten()
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise SweepError(f"hydra.sweep.dir={self.folder} is being run by another process; wait for it") from error
        try:
            self.sweep: Sweep = open_sweep(
                self.folder, ["kikitori", self.command, *sys.argv[1:]], OmegaConf.select(self.config, "sweep.resume")
            )
            yield self
            board.conclude(self.sweep)
        finally:
            lock.release()
        if failures := self.sweep.failures():
            raise SweepError(board.failure_report(self.sweep, failures))

    def compose(self, number: int, overrides: list[str]) -> tuple[Trial, DictConfig]:
        """A trial and its configuration, as the process that will run it composes it."""
        overrides = [override for override in overrides if not override.startswith("sweep.resume=")]
        state = Singleton.get_state()
        cfg = self.loader.load_sweep_config(self.config, overrides)
        with open_dict(cfg):
            cfg.hydra.job.id, cfg.hydra.job.num = str(number), number
        try:
            HydraConfig.instance().set_config(cfg)
            folder = str(cfg.hydra.sweep.subdir)
            with read_write(cfg.hydra.runtime), open_dict(cfg.hydra.runtime):
                cfg.hydra.runtime.output_dir = str(self.folder / folder)
            HydraConfig.instance().set_config(cfg)
            task = [o for o in cfg.hydra.overrides.task if not o.startswith("sweep.resume=")]
            hydra = [o for o in cfg.hydra.overrides.hydra if not o.lstrip("+~").startswith(OF_THE_SWEEP)]
            swept = swept_values(task)
            with flag_override(cfg, ["struct", "readonly"], False):
                del cfg["hydra"]
            resolved = OmegaConf.create(_resolved(cfg))
        finally:
            Singleton.set_state(state)
        return Trial(number, folder, [*task, *hydra], swept, log=f"{folder}/output.log"), resolved

    def prepare(self, configs: Iterable[DictConfig]) -> None:
        """Refuse what cannot run, and decode each corpus once, so that no trial waits for another."""
        faults: dict[str, int] = {}
        for number, cfg in enumerate(configs):
            try:
                check(cfg)
            except ConfigError as error:
                faults.setdefault(error.args[0], number)
                continue
            needed = [plain(cfg.data), cfg.data.limit.sample and cfg.seed, cfg.get("splits")]
            if needed not in self.prepared:
                data = experiment.build_data(cfg)
                data.splits = cfg.get("splits") or data.splits
                data.decode()
                self.prepared.append(needed)
        if faults:
            raise ConfigError("\n".join(f"trial {number}: {fault}" for fault, number in faults.items()))

    def run(self, trials: Iterable[Trial], settled: Callable[[Trial], None] = lambda trial: None) -> None:
        """Run trials as slots become free; each is asked for only then, so that a search can learn before it chooses.

        settled: called with each trial that has ended, or had ended before.
        """
        source, free = iter(trials), list(range(self.parallel))
        running: dict[int, tuple[Trial, subprocess.Popen[bytes], float, float]] = {}
        exhausted = False
        with _told_to_stop() as stop, board.shown(self.sweep) as show:
            try:
                while running or not exhausted:
                    while free and not exhausted and not stop:
                        trial = next(source, None)
                        exhausted = trial is None
                        if trial and not self.is_finished(trial):
                            slot = free.pop(0)
                            running[slot] = (trial, self._start(trial, slot), time.monotonic(), trial.seconds)
                        elif trial:
                            settled(trial)
                    for slot, (trial, process, begun, earlier) in list(running.items()):
                        trial.seconds = earlier + time.monotonic() - begun
                        if process.poll() is not None:
                            del running[slot]
                            free.append(slot)
                            self._end(trial, process)
                            settled(trial)
                    show()
                    if stop:
                        break
                    time.sleep(LOOK_S)
            finally:
                self._stop([(trial, process) for trial, process, *_ in running.values()])
        if stop:
            left = len(self.sweep.failures())
            raise SweepError(f"stopped by {stop[0]}, {left} trials left; sweep.resume={self.folder} goes on")

    def _stop(self, running: list[tuple[Trial, "subprocess.Popen[bytes]"]]) -> None:
        """End trials that are to go on another time."""
        for _, process in running:
            process.terminate()
        for trial, process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            self._end(trial, process)
            if trial.state == "failed":
                trial.state, trial.reason = "waiting", "stopped with the sweep"
        self.sweep.save()

    def is_finished(self, trial: Trial) -> bool:
        """Whether its folder says that nothing is left to do; how it stands is noted."""
        settle(trial, self.folder / trial.folder, None)
        self.sweep.save()
        return trial.state in FINISHED

    def _start(self, trial: Trial, slot: int) -> "subprocess.Popen[bytes]":
        folder = self.folder / trial.folder
        folder.mkdir(parents=True, exist_ok=True)
        trial.state, trial.reason = "running", ""
        self.sweep.save()
        quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
        line = [sys.executable, "-m", "kikitori", self.command, *self._config_options(), *trial.overrides]
        line += [f"hydra.run.dir='{quoted}'", "hydra.mode=RUN"]
        # A run without results has nothing to go on from, and one that went on does not ask whether it may.
        line += ["resume=true"] if self.command == "train" and (folder / "results.json").exists() else []
        with (folder / "output.log").open("ab") as output:
            return subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=self._env(slot),
            )

    def _end(self, trial: Trial, process: "subprocess.Popen[bytes]") -> None:
        # Whatever it started and left, such as a loader's workers after a SIGKILL, goes with it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        settle(trial, self.folder / trial.folder, process.wait())
        (self.folder / trial.folder / "progress.json").unlink(missing_ok=True)
        self.sweep.save()

    def _env(self, slot: int) -> dict[str, str]:
        """What a trial's process sees: its GPUs, its share of the cores, the sweep that it belongs to."""
        environment = {**os.environ, "KIKITORI_SWEEP": str(self.folder), "KIKITORI_PARENT": str(os.getpid())}
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.parallel)))
        if self.gpus:
            mine = [self.gpus[(slot * self.gpus_per_trial + i) % len(self.gpus)] for i in range(self.gpus_per_trial)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(dict.fromkeys(mine))
        return environment

    def _config_options(self) -> list[str]:
        """--config-dir and --config-name where the sweep was given them."""
        hydra = self.config.hydra
        folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
        options = [option for folder in folders for option in ("--config-dir", folder)]
        return options + (["--config-name", hydra.job.config_name] if hydra.job.config_name != self.command else [])


def _resolved(cfg: DictConfig) -> Any:
    """Values with interpolations resolved while Hydra's own are known; what is missing stays missing."""
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)


def _job_return(trial: Trial, cfg: DictConfig) -> JobReturn:
    """What Hydra's sweepers read: the validation CER, which some of them minimise."""
    done = JobReturn(overrides=trial.overrides, cfg=cfg, status=JobStatus.COMPLETED)
    done.return_value = trial.value
    return done


@contextmanager
def _told_to_stop() -> Iterator[list[str]]:
    """Collects the name of a SIGINT or SIGTERM instead of dying of it, so that the trials can be stopped in order."""
    told: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield told
        return

    def note(number: int, _: Any) -> None:
        told.append(signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
