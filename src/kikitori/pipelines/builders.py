"""The parts that every pipeline builds first: devices, data, model, trainer."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from kikitori.config.overrides import to_plain
from kikitori.config.targets import instantiate
from kikitori.data.datamodule import SpeechDataModule
from kikitori.metrics.normalizer import NORMALISER, segmenter
from kikitori.model import window as windows
from kikitori.model.processor import Processor
from kikitori.model.whisper import Whisper
from kikitori.runs.record import fail, timed
from kikitori.runs.results import Results
from kikitori.runs.resume import check_data
from kikitori.runtime import distributed
from kikitori.runtime.distributed import is_main
from kikitori.runtime.files import write_lines
from kikitori.runtime.signals import Stop
from kikitori.training import trainer as trainers

log = logging.getLogger(__name__)


@contextmanager
def on_all_devices(
    command: str, cfg: DictConfig, folder: Path, results: Results, stop: Stop
) -> Iterator[dict[str, Any]]:
    """The Trainer's settings on this machine, with the processes of its other devices running."""
    settings, changes = trainers.on_this_machine(to_plain(cfg.trainer), torch.cuda.device_count())
    if changes:
        log.info("on this machine: %s", "; ".join(changes))
    devices, nodes = settings["devices"], settings.get("num_nodes", 1)
    if command == "train":
        trainers.check_batch(cfg.data.global_batch_size, devices, nodes)

    def on_death(reason: str) -> None:
        log.error(reason)
        fail(results, folder, reason)

    stop.on_forced_exit = on_death
    with distributed.run_on_all_devices(command, to_plain(cfg), folder, devices, nodes, on_death):
        yield settings


def build_data(cfg: DictConfig, trainer: pl.Trainer | None = None) -> SpeechDataModule:
    """The configured corpus, not read yet; this process reads its share of it."""
    # Partial, so that an error comes as it is and not wrapped in one of Hydra's.
    data: SpeechDataModule = instantiate(cfg.data, _partial_=True, _convert_="all")(seed=cfg.seed)
    if trainer:
        data.processes, data.rank = trainer.world_size, trainer.global_rank
    return data


def set_up(
    cfg: DictConfig, data: SpeechDataModule, processor: Processor | None, folder: Path, results: Results
) -> None:
    """Decode and select; whatever comes of it, rejects.jsonl tells what was left out."""
    data.processor = processor
    try:
        with timed(results, "prepare_s"):
            data.setup()
    finally:
        if is_main():
            write_lines(folder / "rejects.jsonl", data.reject_rows())
    summary = data.summary()
    check_data(results, summary, cfg, folder)
    results["data"] = summary
    results["scoring"] = {"normaliser": NORMALISER, "segmenter": segmenter(data.language)}
    for split, facts in results["data"]["splits"].items():
        log.info("%s: %d clips, %.0f s", split, facts["clips"], facts["seconds"])
    if data.rejects:
        log.info("left out: %s", results["data"]["rejects"])


def model_name(cfg: DictConfig) -> str:
    """What a table calls the model: its Hub name's or folder's last part, a checkpoint's run and file."""
    path = Path(cfg.get("checkpoint") or cfg.model.get("name", "micro")).resolve()
    if path.suffix == ".ckpt":
        return f"{path.parents[1].name}/{path.name}"
    # A run's model lies in a folder of that name; the run's own says more.
    return path.parent.name if path.name == "model" else path.name


def configure_generation(whisper: Whisper, limits: dict[str, Any], data: SpeechDataModule) -> None:
    """How the model writes, where the training set may have to say how much."""
    if limits["max_tokens_per_s"] == "auto":
        limits["max_tokens_per_s"] = data.max_tokens_per_s()
    whisper.configure_generation(**limits)


def describe(results: Results, whisper: Whisper, name: str) -> None:
    """Put the model into the results."""
    processor, parameters = whisper.processor, whisper.model.num_parameters()
    window = {"window_s": processor.window_s, "window": windows.describe_window(processor.window)}
    results["model"] = {"name": name, "parameters": parameters, **window}
