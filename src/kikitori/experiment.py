"""A run, from configuration to results; read `train` from top to bottom. `cfg` goes no deeper than this file."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger, Logger

from kikitori import checkpoints, fitting, ranks, saving, scoring
from kikitori import trainer as trainers
from kikitori import whisper as whispers
from kikitori import window as windows
from kikitori.callbacks import Progress, Recorder, ValidateEvery
from kikitori.card import card
from kikitori.clips import Split
from kikitori.collate import preflight
from kikitori.config import check
from kikitori.datamodule import SpeechDataModule
from kikitori.errors import ConfigError, KikitoriError, ModelError
from kikitori.front_end import FrontEnd
from kikitori.metrics import change
from kikitori.module import WhisperModule
from kikitori.monitor import Monitor
from kikitori.report import write_lines
from kikitori.run import Results, check_data, fail, is_main, plain, quieten, record, save, timed
from kikitori.stopping import Stop, heard
from kikitori.targets import instantiate
from kikitori.text import NORMALISER, segmenter
from kikitori.tracking import RunLogger
from kikitori.whisper import Whisper

log = logging.getLogger(__name__)


def train(cfg: DictConfig, folder: Path) -> Results:
    """Fine-tune, with scores before the first step and after the last; everything lands in `folder`."""
    with (
        heard() as stop,
        record("train", cfg, folder) as results,
        on_all_devices("train", cfg, folder, results, stop) as settings,
    ):
        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        recorder, every_steps = Recorder(), cfg.validation.every_steps
        callbacks = [recorder, ValidateEvery(every_steps), LearningRateMonitor("step"), Monitor()]
        callbacks += [Progress(folder), checkpoints.SaveLast(folder / "checkpoints", every_steps, stop)]
        callbacks += map(instantiate, cfg.callbacks.values())
        if is_main():
            checkpoints.keep_metrics(folder)
        loggers = [CSVLogger(folder, name="", version=""), *map(instantiate, cfg.logger.values())]
        trainer = trainers.build(settings, folder, callbacks, loggers)
        tracked = [logger for logger in loggers if isinstance(logger, RunLogger) and is_main()]
        for run in tracked:
            run.begin(results)
        for logger in loggers[1:]:
            logger.log_hyperparams(plain(cfg))
        data = build_data(cfg, trainer)
        data.read_once()
        whisper: Whisper = instantiate(cfg.model, _partial_=True, _convert_="all")()
        came_with = whisper.front_end.window
        whisper = whisper.hearing_in(data.window or came_with)
        set_up(cfg, data, whisper.front_end, folder, results)
        limit_generation(whisper, plain(cfg.generation), data)
        describe(results, whisper, model_name(cfg))
        preflight(next(iter(data.score_dataloader("train"))), whisper.front_end)

        module = WhisperModule(whisper, instantiate(cfg.optim, _convert_="all"), cfg.trainer.get("gradient_clip_val"))
        module.at_once = fitting.at_once(trainer, module, data)
        if data.cache_encoder:
            with timed(results, "encode_s"):
                data.encode_once(trainer, whisper.model)
        sampled: dict[Split, int | None] = {"train": cfg.score.train_clips}
        begun = cfg.resume and scoring.is_scored(folder, data.splits, "before")
        checkpoint = saving.newest(folder / "checkpoints") if begun else None
        with timed(results, "evaluate_s"):
            if checkpoint:
                log.info("going on from %s", checkpoint.name)
                before = scoring.earlier(folder, data.splits, "before", results)
            else:
                # In the windows that it was trained in: to learn others is not to hear better.
                with scoring.heard_in(data, came_with):
                    before = scoring.score(trainer, module, data, sampled, folder, "before", results)
        save(results, folder)
        try:
            with timed(results, "fit_s"), stop.awaited():
                trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        finally:
            results["history"] = recorder.history
            results["cost"] |= recorder.cost() | trainers.machine(trainer)
        checkpoints.take_best(trainer, module)
        with timed(results, "evaluate_s"):
            after = scoring.score(trainer, module, data, sampled, folder, "after", results)
            if whisper.front_end.window != windows.FULL:
                scoring.score_in_full_window(trainer, module, data, cfg.score.full_window_clips, folder, results)
        results["scores"]["change"] = {split: change(before[split], after[split]) for split in data.splits}
        results["checkpoint"] = {"steps": trainer.global_step, **checkpoints.best(trainer)}
        results["cost"] |= trainers.machine(trainer)
        if is_main():
            whisper.save(folder / "model")
            (folder / "model" / "README.md").write_text(card(results), encoding="utf-8")
            log_scores(loggers[1:], results)
        for run in tracked:
            run.conclude(results, data.language, data.stores["validation"].pcm)
    return results


def evaluate(cfg: DictConfig, folder: Path) -> Results:
    """Score a checkpoint or a stock model on the chosen splits."""
    with (
        heard() as stop,
        record("evaluate", cfg, folder) as results,
        on_all_devices("evaluate", cfg, folder, results, stop) as settings,
    ):
        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        trainer = trainers.build(settings, folder, [], [])
        data = build_data(cfg, trainer)
        data.splits = list(cfg.splits)
        data.read_once()
        whisper = checkpoint_model(cfg) if cfg.checkpoint else instantiate(cfg.model, _partial_=True, _convert_="all")()
        whisper = whisper.hearing_in(data.window or whisper.front_end.window)
        set_up(cfg, data, whisper.front_end, folder, results)
        limit_generation(whisper, plain(cfg.generation), data)
        describe(results, whisper, model_name(cfg))
        module = WhisperModule(whisper)
        with timed(results, "evaluate_s"):
            scoring.score(trainer, module, data, {"train": cfg.score.train_clips}, folder, "evaluated", results)
        results["cost"] |= trainers.machine(trainer)
    return results


def prepare(cfg: DictConfig, folder: Path) -> SpeechDataModule:
    """Read and decode a corpus into the store, and tell what would be left out; no model is needed."""
    check(cfg)
    quieten()
    data = build_data(cfg)
    set_up(cfg, data, None, folder, {"cost": {}})
    return data


@contextmanager
def on_all_devices(
    command: str, cfg: DictConfig, folder: Path, results: Results, stop: Stop
) -> Iterator[dict[str, Any]]:
    """The Trainer's settings on this machine, with the processes of its other devices running."""
    settings, changes = trainers.on_this_machine(plain(cfg.trainer), torch.cuda.device_count())
    if changes:
        log.info("on this machine: %s", "; ".join(changes))
    devices, nodes = settings["devices"], settings.get("num_nodes", 1)
    if command == "train":
        trainers.check_batch(cfg.data.global_batch, devices, nodes)

    def on_death(reason: str) -> None:
        log.error(reason)
        fail(results, folder, reason)

    stop.last_words = on_death
    with ranks.together(command, plain(cfg), folder, devices, nodes, on_death):
        yield settings


def build_data(cfg: DictConfig, trainer: pl.Trainer | None = None) -> SpeechDataModule:
    """The configured corpus, not read yet; this process reads its share of it."""
    # Partial, so that an error comes as it is and not wrapped in one of Hydra's.
    data: SpeechDataModule = instantiate(cfg.data, _partial_=True, _convert_="all")(seed=cfg.seed)
    if trainer:
        data.processes, data.rank = trainer.world_size, trainer.global_rank
    return data


def set_up(cfg: DictConfig, data: SpeechDataModule, front_end: FrontEnd | None, folder: Path, results: Results) -> None:
    """Decode and select; whatever comes of it, rejects.jsonl tells what was left out."""
    data.front_end = front_end
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


def checkpoint_model(cfg: DictConfig) -> Whisper:
    """The model of a run folder, a model folder, or a .ckpt file."""
    path = Path(cfg.checkpoint).expanduser()
    language, task = cfg.model.language, cfg.model.task
    if path.is_dir():
        return whispers.load(str(path / "model" if (path / "model").is_dir() else path), language, task)
    if not path.is_file():
        raise ConfigError(f"checkpoint={path} does not exist; give a run folder, a model folder, or a .ckpt file")
    try:
        checkpoint = saving.read(path)
        whisper = whispers.rebuild({**checkpoint["hyper_parameters"]["recipe"], "language": language, "task": task})
        state = {key.removeprefix("model."): value for key, value in checkpoint["state_dict"].items()}
        whisper.model.load_state_dict(state)
    except KikitoriError:
        raise
    except Exception as error:  # whatever is missing in one that is not ours, or does not fit
        reason = str(error).splitlines()[0]
        raise ModelError(f"checkpoint={path} is no checkpoint of kikitori's: {reason}") from error
    return whisper


def model_name(cfg: DictConfig) -> str:
    """What a table calls the model: its Hub name's or folder's last part, a checkpoint's run and file."""
    path = Path(cfg.get("checkpoint") or cfg.model.get("name", "micro")).resolve()
    if path.suffix == ".ckpt":
        return f"{path.parents[1].name}/{path.name}"
    # A run's model lies in a folder of that name; the run's own says more.
    return path.parent.name if path.name == "model" else path.name


def limit_generation(whisper: Whisper, limits: dict[str, Any], data: SpeechDataModule) -> None:
    """How the model writes, where the training set may have to say how much."""
    if limits["max_tokens_per_s"] == "auto":
        limits["max_tokens_per_s"] = data.max_tokens_per_s()
    whisper.limit_generation(**limits)


def describe(results: Results, whisper: Whisper, name: str) -> None:
    """Put the model into the results."""
    front_end, parameters = whisper.front_end, whisper.model.num_parameters()
    window = {"window_s": front_end.window_s, "window": windows.describe(front_end.window)}
    results["model"] = {"name": name, "parameters": parameters, **window}


def log_scores(loggers: list[Logger], results: Results) -> None:
    """The scores before and after, for the loggers that show them."""
    for stage in ("before", "after"):
        for split, rates in results["scores"][stage].items():
            for logger in loggers:
                logger.log_metrics({f"{stage}/{split}/{rate}": rates[rate] for rate in ("cer", "wer")})
