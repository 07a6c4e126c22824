"""The Trainer on the machine at hand: what `auto` takes, what had to change, what it cost."""

import logging
import resource
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from kikitori.errors import ConfigError
from kikitori.progress import shows_bars

log = logging.getLogger(__name__)


def build(
    settings: dict[str, Any], folder: Path, callbacks: list[pl.Callback], loggers: list[Logger], every_steps: int | None
) -> pl.Trainer:
    """Lightning's Trainer; what the machine makes it change is said in one line.

    settings: the Trainer's own arguments. every_steps: optimizer steps from one validation to the next, None to score
    only. Raises ConfigError where Lightning refuses the settings.
    """
    settings, changes = on_this_machine(settings, torch.cuda.is_available())
    if changes:
        log.info("on this machine: %s", "; ".join(changes))
    if every_steps:
        # Lightning counts batches here, we count optimizer steps; a run shorter than the interval is still validated.
        steps = min(every_steps, settings["max_steps"])
        settings["val_check_interval"] = steps * settings["accumulate_grad_batches"]
    if shows_bars():
        callbacks = [*callbacks, RichProgressBar()]
    make = instantiate(settings, _partial_=True, _convert_="all")
    try:
        return make(
            callbacks=callbacks,
            logger=loggers,
            default_root_dir=str(folder),
            enable_progress_bar=shows_bars(),
            enable_checkpointing=every_steps is not None,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            check_val_every_n_epoch=None,
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise ConfigError(f"trainer={settings} is refused by Lightning: {error}") from error


def on_this_machine(trainer: dict[str, Any], has_cuda: bool) -> tuple[dict[str, Any], list[str]]:
    """The Trainer's settings with `auto` decided, and what was decided or had to be changed, for a person to read."""
    on_gpu = has_cuda and trainer["accelerator"] in ("auto", "gpu", "cuda")
    precision, changes = str(trainer["precision"]), []
    if precision == "auto":
        precision = "16-mixed" if on_gpu else "32"
        changes = [f"trainer=auto takes {'the GPU' if on_gpu else 'the CPU'} and precision {precision}"]
    elif precision == "16-mixed" and not on_gpu and trainer["accelerator"] in ("auto", "cpu"):
        precision, changes = "32", ["no GPU, so trainer.precision is 32 instead of 16-mixed"]
    return {**trainer, "precision": precision}, changes


def machine(trainer: pl.Trainer) -> dict[str, Any]:
    """Device and peak memory, of the GPU where there is one, else of the process."""
    if trainer.strategy.root_device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
        return {"device": torch.cuda.get_device_name(), "peak_memory_gb": peak / 2**30}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"device": f"cpu, {torch.get_num_threads()} threads", "peak_memory_gb": peak / 2**30}


def quieten() -> None:
    """Keep Lightning's hints about its own defaults out of a run's output."""
    for name in ("pytorch_lightning.utilities.rank_zero", "pytorch_lightning.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for hint in (".*does not have many workers.*", ".*smaller than the logging interval.*", ".*treespec.*"):
        warnings.filterwarnings("ignore", hint)
