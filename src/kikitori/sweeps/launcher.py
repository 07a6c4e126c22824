"""Runs the trials of a sweep on this machine, several at once.

Each trial is a separate process in Hydra's RUN mode, so a trial that runs out of memory or crashes does not affect the
others.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from omegaconf import DictConfig, OmegaConf, flag_override, open_dict, read_write

from kikitori.config.overrides import config_options, override, swept_values
from kikitori.config.validation import check_config
from kikitori.runs.results import PROGRESS
from kikitori.runtime.console import quiet_libraries
from kikitori.runtime.errors import ConfigError, KikitoriError, Stopped, SweepError
from kikitori.runtime.files import remove_if_nothing_else
from kikitori.runtime.processes import collect_stop_signals, cores, folder_lock
from kikitori.steps.builders import build_data
from kikitori.sweeps import live_table
from kikitori.sweeps.trials import OUTPUT, Sweep, Trial, open_sweep, update_state

log = logging.getLogger(__name__)

# Seconds between two looks at the processes.
POLL_S = 0.2
# Seconds between SIGTERM and SIGKILL when a trial is stopped.
GRACE_S = 30.0
# Hydra's overrides that configure the sweep; a trial's command line must not repeat them.
SWEEP_OVERRIDES = ("hydra.mode", "hydra.sweep", "hydra.run.dir", "hydra/launcher", "hydra.launcher", "hydra/sweeper")

# Keys of `data` that do not change which clips are decoded, or how.
NOT_FOR_DECODING = (
    *("global_batch_size", "micro_batch_size", "eval_batch_size", "num_workers", "group_by_length"),
    *("window", "window_edges_s", "window_margin_s", "full_window_share", "cache_encoder_outputs"),
)


def launch(plugin: Any, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Runs a fixed list of trials, as Hydra's own sweepers call a launcher.

    Raises ConfigError before any trial starts if a configuration is wrong, and SweepError after the last trial if
    some failed.
    """
    if not job_overrides:
        raise ConfigError("the sweep has no trials: one of its axes is empty; give every swept key at least one value")
    with TrialRunner(plugin).open(is_continued=first > 0) as runner:
        jobs = [runner.compose(first + i, list(overrides)) for i, overrides in enumerate(job_overrides)]
        runner.prepare([cfg for _, cfg in jobs])
        trials = [runner.sweep.add(trial) for trial, _ in jobs]
        runner.sweep.num_trials = len(runner.sweep.trials)
        runner.run(trials)
    return [_job_return(trial) for trial in trials]


class TrialRunner:
    """Runs trials in slots, each with its share of this machine's GPUs."""

    def __init__(self, plugin: Any) -> None:
        """plugin: a launcher of Hydra's; one that is not ours starts the trials itself, in the folders kept here."""
        self.config: DictConfig = plugin.config
        self.loader = plugin.hydra_context.config_loader
        self.folder = Path(self.config.hydra.sweep.dir)
        self.command = plugin.task_function.__module__.rpartition(".")[2]
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        self.gpus = [gpu for gpu in gpus.split(",") if gpu] if torch.cuda.device_count() else []
        self.is_local = hasattr(plugin, "gpus_per_trial")
        self.gpus_per_trial = getattr(plugin, "gpus_per_trial", 1)
        self.parallel = getattr(plugin, "parallel", 1) or max(1, len(self.gpus) // self.gpus_per_trial)
        if self.gpus and self.gpus_per_trial > len(self.gpus):
            raise ConfigError(
                f"hydra.launcher.gpus_per_trial={self.gpus_per_trial}: must be at most {len(self.gpus)}, the number of "
                "visible GPUs"
            )
        self.prepared: list[Any] = []

    @contextmanager
    def open(self, is_continued: bool = False, is_search: bool = False) -> Iterator["TrialRunner"]:
        """Locks the sweep's folder, so that no second process runs the same trials, and prints the table at the end.

        is_continued: whether these trials belong to a sweep that this process started. is_search: whether
        configurations that fail are results, such as a learning rate at which training diverges. Raises SweepError at
        the end if trials failed.
        """
        setup_globals()
        quiet_libraries()
        self.folder.mkdir(parents=True, exist_ok=True)
        with folder_lock(self.folder, f"hydra.sweep.dir={self.folder}", SweepError):
            line = ["kikitori", self.command, *sys.argv[1:]]
            resume = str(self.folder) if is_continued else OmegaConf.select(self.config, "resume_sweep")
            self.sweep: Sweep = open_sweep(self.folder, line, resume)
            try:
                yield self
            except KikitoriError:
                # Without a trial, nothing in it is worth resuming.
                remove_if_nothing_else(self.folder, [self.folder / "multirun.yaml", self.folder / ".lock"])
                raise
            live_table.print_summary(self.sweep)
        if failures := self.sweep.failures():
            report = live_table.failure_report(self.sweep, failures, is_search)
            # A search learns from configurations that fail; they are among its results.
            if not (is_search and all(t.is_repeatable for t in failures) and len(failures) < len(self.sweep.trials)):
                raise SweepError(report)
            log.warning("%s", report)

    def compose(self, number: int, overrides: list[str]) -> tuple[Trial, dict[str, Any]]:
        """A trial and the plain values of its configuration, composed as its own process will."""
        overrides = [override for override in overrides if not override.startswith("resume_sweep=")]
        # Hydra keeps the current job in a singleton; resolvers such as ${hydra:job.num} must find this trial's there.
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
            task = list(cfg.hydra.overrides.task)
            hydra = [o for o in cfg.hydra.overrides.hydra if not o.lstrip("+~").startswith(SWEEP_OVERRIDES)]
            swept = swept_values(task)
            with flag_override(cfg, ["struct", "readonly"], False):
                del cfg["hydra"]
            # Resolved here, while the singleton holds Hydra's values. A missing value (???) stays missing.
            resolved: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
        finally:
            Singleton.set_state(state)
        return Trial(number, folder, [*task, *hydra], swept), resolved

    def prepare(self, configs: Iterable[Mapping[str, Any]]) -> None:
        """Checks all configurations, and decodes each corpus once before the trials start.

        Raises ConfigError with the problems of all trials.
        """
        faults: dict[str, int] = {}
        for number, cfg in enumerate(configs):
            try:
                config = check_config(cfg)
                self._check_devices(config)
            except ConfigError as error:
                faults.setdefault(error.args[0], number)
                continue
            corpus = {key: value for key, value in config["data"].items() if key not in NOT_FOR_DECODING}
            needed = [corpus, config.get("splits")]
            if needed not in self.prepared:
                build_data(config).decode()
                self.prepared.append(needed)
        if faults:
            raise ConfigError("\n".join(f"trial {number}: {fault}" for fault, number in faults.items()))

    def _check_devices(self, config: Mapping[str, Any]) -> None:
        """Raises ConfigError if a trial would leave some of its GPUs idle, or ask for more than it gets."""
        trainer = config.get("trainer", {})
        devices = trainer.get("devices")
        uses_gpus = self.is_local and self.gpus and trainer.get("accelerator") != "cpu"
        if uses_gpus and isinstance(devices, int) and 0 < devices != self.gpus_per_trial:
            raise ConfigError(
                f"hydra.launcher.gpus_per_trial={self.gpus_per_trial}, but each trial uses trainer.devices={devices}; "
                f"pass trainer=ddp trainer.devices={self.gpus_per_trial}, or hydra.launcher.gpus_per_trial={devices}"
            )

    def run(self, trials: Iterable[Trial], on_end: Callable[[Trial], None] = lambda trial: None) -> None:
        """Runs trials as slots become free.

        trials: the next one is taken only when a slot is free, so that a search chooses it with the results so far.
        on_end: called with each trial that ends, or that an earlier start finished.
        """
        if self.parallel > 1 and not self.gpus and "OMP_NUM_THREADS" not in os.environ:
            log.info(
                "%d trials at a time share %d cores; each has a thread per core, so that its weights are those of a "
                "single run. OMP_NUM_THREADS=%d is faster, with other last digits",
                *(self.parallel, cores(), max(1, cores() // self.parallel)),
            )
        self.running: dict[int, Process] = {}
        source, self.free = iter(trials), list(range(self.parallel))
        with collect_stop_signals() as stop, live_table.live_progress(self.sweep) as show:
            try:
                while (self._fill(source, stop, on_end) or self.running) and not stop:
                    self._reap(on_end)
                    show()
                    time.sleep(POLL_S)
            finally:
                self._stop()
        if stop:
            left = len(self.sweep.failures())
            raise Stopped(stop[0], f", {left} trials left; to resume: {self.sweep.resume_command}")

    def _fill(self, source: Iterator[Trial], stop: list[int], on_end: Callable[[Trial], None]) -> bool:
        """Starts trials in the free slots. Returns whether there may be more."""
        while self.free and not stop:
            trial = next(source, None)
            if trial is None:
                return False
            if self.is_finished(trial):
                on_end(trial)
            elif not stop:  # a signal may have come while the trial was chosen and its clips were decoded
                slot = self.free.pop(0)
                self.running[slot] = self._start(trial, slot)
        return True

    def _reap(self, on_end: Callable[[Trial], None]) -> None:
        """Collects the trials whose process has ended."""
        for slot, process in list(self.running.items()):
            process.trial.seconds = process.seconds + time.time() - process.began
            if process.popen.poll() is not None:
                del self.running[slot]
                self.free.append(slot)
                self._end(process)
                on_end(process.trial)

    def _stop(self) -> None:
        """Stops the running trials; a later resume continues them."""
        for process in self.running.values():
            process.popen.terminate()
        deadline = time.monotonic() + GRACE_S
        for process in self.running.values():
            with suppress(subprocess.TimeoutExpired):
                process.popen.wait(max(0.0, deadline - time.monotonic()))
            self._end(process)
            if process.trial.state == "failed":
                process.trial.state, process.trial.reason = "waiting", "stopped with the sweep"
        self.sweep.save()

    def is_finished(self, trial: Trial) -> bool:
        """Updates a trial's state from its folder. Returns whether it has ended and would end the same way again."""
        update_state(trial, self.folder / trial.folder, None)
        self.sweep.save()
        return trial.has_ended

    def _start(self, trial: Trial, slot: int) -> "Process":
        folder = self.folder / trial.folder
        folder.mkdir(parents=True, exist_ok=True)
        trial.state, trial.reason, trial.log = "running", "", f"{trial.folder}/{OUTPUT}"
        self.sweep.save()
        options = config_options(self.config.hydra, self.command)
        line = [sys.executable, "-P", "-m", "kikitori", self.command, *options, *trial.overrides]
        line += [override("hydra.run.dir", folder), "hydra.mode=RUN", "resume=auto"]
        began = time.time()
        with (folder / OUTPUT).open("ab") as output:
            streams: Any = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
            popen = subprocess.Popen(line, **streams, start_new_session=True, env=self._env(slot))
        return Process(trial, popen, began, trial.seconds)

    def _end(self, process: "Process") -> None:
        # Kill what the trial left running, such as a loader's workers after a SIGKILL.
        with suppress(ProcessLookupError):
            os.killpg(process.popen.pid, signal.SIGKILL)
        trial, folder = process.trial, self.folder / process.trial.folder
        update_state(trial, folder, process.popen.wait(), process.began)
        (folder / PROGRESS).unlink(missing_ok=True)
        self.sweep.save()

    def _env(self, slot: int) -> dict[str, str]:
        """The environment of a trial's process: its GPUs and the sweep that it belongs to.

        Its number of threads is that of a single run, on which the last digits of the weights depend.
        """
        environment = {**os.environ, "KIKITORI_SWEEP": str(self.folder), "KIKITORI_PARENT": str(os.getpid())}
        if self.gpus:
            mine = [self.gpus[(slot * self.gpus_per_trial + i) % len(self.gpus)] for i in range(self.gpus_per_trial)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(dict.fromkeys(mine))
        return environment


@dataclass
class Process:
    """A trial's process.

    began: when it was started, comparable with the modification times of files. seconds: run time of earlier attempts.
    """

    trial: Trial
    popen: "subprocess.Popen[bytes]"
    began: float
    seconds: float


def _job_return(trial: Trial) -> JobReturn:
    """The result of a trial for Hydra's sweepers: the validation CER, which some of them minimise."""
    done = JobReturn(overrides=trial.overrides, status=JobStatus.COMPLETED)
    done.return_value = trial.value
    return done
