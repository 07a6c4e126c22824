"""Builds Lightning's Trainer for this machine, refuses settings that are not supported, and reports the hardware."""

import logging
import os
import resource
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from kikitori.config.targets import instantiate
from kikitori.runtime import distributed
from kikitori.runtime.errors import ConfigError, one_line
from kikitori.training.callbacks import ProgressReport, ValidateEvery
from kikitori.training.checkpoints import CheckpointFiles

log = logging.getLogger(__name__)

# Lightning's names of the precisions with fp32 weights.
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


def build_trainer(
    settings: dict[str, Any],
    folder: Path,
    callbacks: list[pl.Callback],
    loggers: list[Logger],
    max_steps: int = -1,
    files: CheckpointFiles | None = None,
) -> pl.Trainer:
    """Builds Lightning's Trainer.

    settings: its arguments, as `resolve_trainer_settings` returns them. max_steps: of a training, which the settings
    may give in epochs. files: what writes and reads its checkpoints. Raises ConfigError if Lightning refuses the
    settings.
    """
    # The module clips gradients: Lightning does so only if it runs the backward pass itself.
    settings = {k: v for k, v in settings.items() if k not in ("gradient_clip_val", "max_steps", "max_epochs")}
    # Deterministic algorithms would fill new tensors with NaN, to show those that are read unwritten: 4 % of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    environment = _environment()
    try:
        trainer: pl.Trainer = instantiate(
            settings,
            "trainer",
            callbacks=[*callbacks, ProgressReport()],
            logger=loggers,
            plugins=[files or CheckpointFiles(), *([environment] if environment else [])],
            max_steps=max_steps,
            # All steps are one epoch of Lightning's.
            max_epochs=-1,
            default_root_dir=str(folder),
            enable_progress_bar=False,  # `ProgressReport` has ours
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_model_summary=False,
            num_sanity_val_steps=0,
            # The data module's samplers share the clips among the processes, each clip once.
            use_distributed_sampler=False,
            # `ValidateEvery` decides when to validate.
            check_val_every_n_epoch=None,
            val_check_interval=ValidateEvery.NEVER,
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        given = ", ".join(f"trainer.{key}={value}" for key, value in settings.items() if not key.startswith("_"))
        raise ConfigError(f"Lightning's Trainer refuses its settings: {one_line(error)} ({given})") from error
    if (device := trainer.strategy.root_device).type == "cuda":
        # Now, because whatever needs a GPU before Lightning chooses it, such as pinned memory, would use the first one.
        torch.cuda.set_device(device)
    # Lightning's own signal handlers end a run as a success, or start a broadcast during another collective.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def build_callback(node: dict[str, Any], folder: Path) -> pl.Callback:
    """Builds a configured callback. folder: of the checkpoints."""
    files: dict[str, Any] = {}
    if node["_target_"] == "pytorch_lightning.callbacks.ModelCheckpoint":
        files = {"dirpath": str(folder), "filename": "step-{step}", "auto_insert_metric_name": False}
    callback: pl.Callback = instantiate(node, "callbacks", **files)
    if isinstance(callback, EarlyStopping):
        # A checkpoint would restore the patience that the run had, and undo one that was raised since.
        load, patience = callback.load_state_dict, callback.patience
        callback.load_state_dict = lambda state: load({**state, "patience": patience})  # type: ignore[assignment]
    return callback


def _environment() -> ClusterEnvironment | None:
    """How the processes of this run were started, if Lightning would detect it wrongly.

    Inside a Slurm allocation, Lightning assumes that srun started every process; and its requeueing would conflict with
    submitit's.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return None
    srun = distributed.world_size() > 1 and "LOCAL_RANK" not in os.environ
    return SLURMEnvironment(auto_requeue=False) if srun else LightningEnvironment()


def refuse_unsupported(trainer: pl.Trainer) -> None:
    """Raises ConfigError for an argument of Lightning's Trainer that WhisperModule does not support."""
    strategy = trainer.strategy
    if not isinstance(strategy, SingleDeviceStrategy) and type(strategy) not in (DDPStrategy, Ddp):
        raise ConfigError(
            f"{type(strategy).__name__} is not supported: gradients are clipped by the norm of the whole model, which "
            'sharded strategies do not compute; pass Trainer(strategy="ddp")'
        )
    if (precision := str(trainer.precision)) not in PRECISIONS:
        raise ConfigError(
            f'Trainer(precision="{precision}") is not supported: the model\'s weights stay in fp32; pass "16-mixed", '
            '"bf16-mixed" or "32-true"'
        )
    if trainer.state.fn != TrainerFn.FITTING:
        return
    if trainer.gradient_clip_val:
        raise ConfigError(
            f"Trainer(gradient_clip_val={trainer.gradient_clip_val}) is not supported: the module clips gradients; "
            f"pass WhisperModule(..., clip_norm={trainer.gradient_clip_val}) instead"
        )
    if trainer.accumulate_grad_batches != 1:
        raise ConfigError(
            f"Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}) is not supported: a batch is a whole "
            "optimizer step; set the data's global_batch_size instead, which micro_batch_size splits to fit into memory"
        )
    if overfit_batches := getattr(trainer, "overfit_batches", 0):
        raise ConfigError(
            f"Trainer(overfit_batches={overfit_batches}) is not supported: it would replace the data's sampler; "
            "pass the data module limit={'train': 8} instead, to train on 8 clips"
        )


def resolve_trainer_settings(trainer: dict[str, Any], gpus: int) -> tuple[dict[str, Any], list[str]]:
    """Replaces `auto` in the Trainer's settings. Returns them with a list of the choices and changes, in words.

    Raises ConfigError if the machine has fewer GPUs than requested.
    """
    on_gpu = gpus > 0 and trainer["accelerator"] != "cpu"
    accelerator = trainer["accelerator"]
    if accelerator in ("gpu", "cuda") and not gpus:
        raise ConfigError(f"trainer.accelerator={accelerator}, but no GPU is visible; use auto or cpu")
    if accelerator == "auto":
        accelerator = "gpu" if on_gpu else "cpu"
    devices = trainer["devices"]
    if devices == "auto":
        devices = gpus if on_gpu else 1
    if on_gpu and devices > gpus:
        raise ConfigError(
            f"trainer.devices={devices}, but this machine has {gpus} visible GPUs; use fewer, or auto "
            "(a trial of a sweep sees hydra.launcher.gpus_per_trial of them)"
        )
    precision, changes = str(trainer["precision"]), []
    if precision == "auto":
        precision = "16-mixed" if on_gpu else "32"
    elif precision == "16-mixed" and accelerator == "cpu":
        precision, changes = "32", ["no GPU, so trainer.precision is 32 instead of 16-mixed"]
    where = f"{devices} GPUs" if on_gpu and devices > 1 else "the GPU" if on_gpu else "the CPU"
    changes = changes or [f"{where} and precision {precision}"]
    settings = {**trainer, "accelerator": accelerator, "devices": devices, "precision": precision}
    if settings.get("deterministic") in ("auto", None):  # missing in runs of earlier versions
        settings["deterministic"] = accelerator == "cpu"
    if devices * trainer.get("num_nodes", 1) == 1:
        # DDP with one process has nothing to average, and cannot repeat a step that ran out of memory.
        settings.pop("strategy", None)
    elif not isinstance(settings.get("strategy"), dict):
        settings["strategy"] = {"_target_": "kikitori.ddp"}
    return settings, changes


def check_batch_size(global_batch_size: int, devices: int, nodes: int) -> None:
    """Raises ConfigError unless all devices get the same number of clips per step."""
    parts = devices * nodes
    if global_batch_size % parts:
        raise ConfigError(
            f"data.global_batch_size={global_batch_size} is not divisible by {parts} = {devices} devices x {nodes} "
            f"nodes; use a multiple of {parts}"
        )


def ddp(collective_timeout_s: float = 1800) -> DDPStrategy:
    """Returns Lightning's DDP strategy: one process per device, with averaged gradients.

    collective_timeout_s: how long a process waits for the others before it ends with an error. It must exceed the time
    by which processes may differ when they synchronise, mostly after their shares of a validation.
    """
    # The buffers of a Whisper are frozen weights in 8 or 4 bits: equal everywhere, and too large to send in each step.
    return Ddp(timeout=timedelta(seconds=collective_timeout_s), broadcast_buffers=False)


class Ddp(DDPStrategy):
    """Lightning's DDP for processes that kikitori started: they meet through a file and exchange plain values only.

    Lightning's own listens on all addresses of the machine, and unpickles what another process broadcasts.
    """

    def setup_distributed(self) -> None:
        if (meeting := os.environ.get(distributed.MEETING)) and not torch.distributed.is_initialized():
            self.set_world_ranks()
            store = torch.distributed.FileStore(meeting, self.world_size)
            torch.distributed.init_process_group(
                self._get_process_group_backend(),
                store=store,
                rank=self.global_rank,
                world_size=self.world_size,
                timeout=self._timeout,
                device_id=self.root_device if self.root_device.type == "cuda" else None,
            )
        super().setup_distributed()

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return distributed.all_gather(obj)[src]


def hardware_facts(trainer: pl.Trainer) -> dict[str, Any]:
    """The number of devices, their kind, and the peak memory of one GPU, or on a CPU of one process."""
    devices = {"devices": trainer.world_size}
    if trainer.strategy.root_device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
        return {**devices, "device": torch.cuda.get_device_name(), "peak_memory_gb": peak / 2**30}
    # Of the process since it started. macOS counts bytes, Linux KiB.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    threads = torch.get_num_threads()
    device = f"cpu, {threads} thread{'s' * (threads > 1)}"
    return {**devices, "device": device, "peak_memory_gb": peak / 2**30}
