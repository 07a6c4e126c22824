"""The Trainer on the machine at hand: what `auto` takes, what had to change, what it cost."""

import logging
import resource
import sys
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from pytorch_lightning.callbacks import Checkpoint, RichProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from kikitori.callbacks import ValidateEvery
from kikitori.errors import ConfigError
from kikitori.progress import shows_bars

log = logging.getLogger(__name__)


def build(settings: dict[str, Any], folder: Path, callbacks: list[pl.Callback], loggers: list[Logger]) -> pl.Trainer:
    """Lightning's Trainer; what the machine makes it change is said in one line.

    settings: the Trainer's own arguments. Raises ConfigError where Lightning refuses them.
    """
    settings, changes = on_this_machine(settings, torch.cuda.is_available())
    if changes:
        log.info("on this machine: %s", "; ".join(changes))
    if shows_bars():
        callbacks = [*callbacks, RichProgressBar()]
    make = instantiate(settings, _partial_=True, _convert_="all")
    try:
        return make(
            callbacks=callbacks,
            logger=loggers,
            default_root_dir=str(folder),
            enable_progress_bar=shows_bars(),
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_model_summary=False,
            num_sanity_val_steps=0,
            # `ValidateEvery` decides.
            check_val_every_n_epoch=None,
            val_check_interval=ValidateEvery.NEVER,
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise ConfigError(f"trainer={settings} is refused by Lightning: {error}") from error


def on_this_machine(trainer: dict[str, Any], has_cuda: bool) -> tuple[dict[str, Any], list[str]]:
    """The Trainer's settings with `auto` decided, and what was decided or had to be changed, for a person to read."""
    on_gpu = has_cuda and trainer["accelerator"] != "cpu"
    accelerator = trainer["accelerator"]
    if accelerator == "auto":
        accelerator = "gpu" if on_gpu else "cpu"
    precision, changes = str(trainer["precision"]), []
    if precision == "auto":
        precision = "16-mixed" if on_gpu else "32"
        changes = [f"trainer=auto takes {'the GPU' if on_gpu else 'the CPU'} and precision {precision}"]
    elif precision == "16-mixed" and accelerator == "cpu":
        precision, changes = "32", ["no GPU, so trainer.precision is 32 instead of 16-mixed"]
    return {**trainer, "accelerator": accelerator, "precision": precision}, changes


def machine(trainer: pl.Trainer) -> dict[str, Any]:
    """Device and peak memory, of the GPU where there is one, else of the process."""
    if trainer.strategy.root_device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
        return {"device": torch.cuda.get_device_name(), "peak_memory_gb": peak / 2**30}
    # The process's, whatever it did before; macOS counts bytes, Linux KiB.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"device": f"cpu, {torch.get_num_threads()} threads", "peak_memory_gb": peak / 2**30}


def quieten() -> None:
    """Keep Lightning's hints about its own defaults out of a run's output."""
    for name in ("pytorch_lightning.utilities.rank_zero", "pytorch_lightning.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for hint in (
        ".*does not have many workers.*",
        ".*Experiment logs directory.*",
        ".*smaller than the logging interval.*",
        ".*treespec.*",
    ):
        warnings.filterwarnings("ignore", hint)
