"""The Trainer on the machine at hand: what `auto` takes, what had to change, what it cost."""

import logging
import os
import resource
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, RichProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from kikitori.config.targets import instantiate
from kikitori.runtime import distributed
from kikitori.runtime.console import shows_bars
from kikitori.runtime.errors import ConfigError
from kikitori.training.callbacks import ValidateEvery
from kikitori.training.checkpoints import CheckpointFiles

log = logging.getLogger(__name__)


def build_trainer(
    settings: dict[str, Any], folder: Path, callbacks: list[pl.Callback], loggers: list[Logger]
) -> pl.Trainer:
    """Lightning's Trainer.

    settings: the Trainer's own arguments, as `on_this_machine` gives them. Raises ConfigError where it refuses them.
    """
    if shows_bars():
        callbacks = [*callbacks, RichProgressBar()]
    # The module clips gradients: Lightning does only where it runs the backward pass itself.
    settings = {key: value for key, value in settings.items() if key != "gradient_clip_val"}
    make = instantiate(settings, _partial_=True, _convert_="all")
    environment = _environment()
    try:
        trainer: pl.Trainer = make(
            callbacks=callbacks,
            logger=loggers,
            plugins=[CheckpointFiles(), *([environment] if environment else [])],
            default_root_dir=str(folder),
            enable_progress_bar=shows_bars(),
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_model_summary=False,
            num_sanity_val_steps=0,
            # The loaders deal out the clips themselves, each once.
            use_distributed_sampler=False,
            # `ValidateEvery` decides.
            check_val_every_n_epoch=None,
            val_check_interval=ValidateEvery.NEVER,
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise ConfigError(f"trainer={settings} is refused by Lightning: {error}") from error
    # Lightning's own handlers end a run as a success, or broadcast in the middle of another collective.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def _environment() -> ClusterEnvironment | None:
    """Who started the processes of this run, where Lightning would guess wrong.

    Inside an allocation of Slurm it takes every process for one of srun's; and its requeueing would meet submitit's.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return None
    srun = distributed.world_size() > 1 and "LOCAL_RANK" not in os.environ
    return SLURMEnvironment(auto_requeue=False) if srun else LightningEnvironment()


def resolve_trainer_settings(trainer: dict[str, Any], gpus: int) -> tuple[dict[str, Any], list[str]]:
    """The Trainer's settings with `auto` decided, and what was decided or had to be changed, for a person to read.

    Raises ConfigError where more GPUs are asked for than there are.
    """
    on_gpu = gpus > 0 and trainer["accelerator"] != "cpu"
    accelerator = trainer["accelerator"]
    if accelerator == "auto":
        accelerator = "gpu" if on_gpu else "cpu"
    devices = trainer["devices"]
    if devices == "auto":
        devices = gpus if on_gpu else 1
    if on_gpu and devices > gpus:
        raise ConfigError(
            f"trainer.devices={devices}, but this machine shows {gpus} GPUs; take fewer, or auto "
            "(a trial of a sweep is shown hydra.launcher.gpus_per_trial of them)"
        )
    precision, changes = str(trainer["precision"]), []
    if precision == "auto":
        precision = "16-mixed" if on_gpu else "32"
        where = f"{devices} GPUs" if on_gpu and devices > 1 else "the GPU" if on_gpu else "the CPU"
        changes = [f"trainer takes {where} and precision {precision}"]
    elif precision == "16-mixed" and accelerator == "cpu":
        precision, changes = "32", ["no GPU, so trainer.precision is 32 instead of 16-mixed"]
    return {**trainer, "accelerator": accelerator, "devices": devices, "precision": precision}, changes


def check_batch_size(global_batch_size: int, devices: int, nodes: int) -> None:
    """Raise ConfigError unless each device gets equally many clips of a step."""
    parts = devices * nodes
    if global_batch_size % parts:
        raise ConfigError(
            f"data.global_batch_size={global_batch_size} does not divide by {parts} = {devices} devices x {nodes} nodes; "
            f"take a multiple of {parts}"
        )


def ddp(collective_timeout_s: float) -> DDPStrategy:
    """One process a device, gradients averaged; processes that wait longer than this for each other end with an error.

    It must cover what processes may be apart when they meet: their shares of a validation above all.
    """
    return DDPStrategy(timeout=timedelta(seconds=collective_timeout_s))


def hardware_facts(trainer: pl.Trainer) -> dict[str, Any]:
    """How many devices, their kind, and peak memory: of one GPU where there is one, else of one process."""
    devices = {"devices": trainer.world_size}
    if trainer.strategy.root_device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
        return {**devices, "device": torch.cuda.get_device_name(), "peak_memory_gb": peak / 2**30}
    # The process's, whatever it did before; macOS counts bytes, Linux KiB.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {**devices, "device": f"cpu, {torch.get_num_threads()} threads", "peak_memory_gb": peak / 2**30}
