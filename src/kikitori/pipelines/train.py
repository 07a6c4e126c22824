"""A run, from configuration to results; read `train` from top to bottom. `cfg` goes no deeper than this file."""

import logging
from pathlib import Path

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger, Logger

from kikitori.config.overrides import to_plain
from kikitori.config.targets import instantiate
from kikitori.corpora.types import Split
from kikitori.data.collate import check_label_contract
from kikitori.metrics.error_rates import change
from kikitori.model import window as windows
from kikitori.model.whisper import Whisper
from kikitori.pipelines import scoring
from kikitori.pipelines.builders import build_data, configure_generation, describe, model_name, on_all_devices, set_up
from kikitori.runs.model_card import model_card
from kikitori.runs.record import record, save, timed
from kikitori.runs.results import Results
from kikitori.runs.wandb_logger import WandbRunLogger
from kikitori.runtime.distributed import is_main
from kikitori.runtime.signals import handle_signals
from kikitori.training import batch_size_finder, checkpoints
from kikitori.training import trainer as trainers
from kikitori.training.callbacks import Progress, ThroughputMonitor, ValidateEvery
from kikitori.training.history import TrainingHistory
from kikitori.training.lightning_module import WhisperModule

log = logging.getLogger(__name__)


def train(cfg: DictConfig, folder: Path) -> Results:
    """Fine-tune, with scores before the first step and after the last; everything lands in `folder`."""
    with (
        handle_signals() as stop,
        record("train", cfg, folder) as results,
        on_all_devices("train", cfg, folder, results, stop) as settings,
    ):
        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        recorder, every_steps = TrainingHistory(), cfg.validation.every_steps
        callbacks = [recorder, ValidateEvery(every_steps), LearningRateMonitor("step"), ThroughputMonitor()]
        callbacks += [Progress(folder), checkpoints.SaveLastCheckpoint(folder / "checkpoints", every_steps, stop)]
        callbacks += map(instantiate, cfg.callbacks.values())
        if is_main():
            checkpoints.rotate_metrics(folder)
        loggers = [CSVLogger(folder, name="", version=""), *map(instantiate, cfg.logger.values())]
        trainer = trainers.build_trainer(settings, folder, callbacks, loggers)
        tracked = [logger for logger in loggers if isinstance(logger, WandbRunLogger) and is_main()]
        for run in tracked:
            run.start(results)
        for logger in loggers[1:]:
            logger.log_hyperparams(to_plain(cfg))
        data = build_data(cfg, trainer)
        data.load_corpus()
        whisper: Whisper = instantiate(cfg.model, _partial_=True, _convert_="all")()
        pretrained_window = whisper.processor.window
        whisper = whisper.with_window(data.window or pretrained_window)
        set_up(cfg, data, whisper.processor, folder, results)
        configure_generation(whisper, to_plain(cfg.generation), data)
        describe(results, whisper, model_name(cfg))
        check_label_contract(next(iter(data.score_dataloader("train"))), whisper.processor)

        module = WhisperModule(whisper, instantiate(cfg.optim, _convert_="all"), cfg.trainer.get("gradient_clip_val"))
        module.micro_batch_sizes = batch_size_finder.find_micro_batch_sizes(trainer, module, data)
        if data.cache_encoder_outputs:
            with timed(results, "encode_s"):
                data.build_encoder_caches(trainer, whisper.model)
        sampled: dict[Split, int | None] = {"train": cfg.score.train_clips}
        begun = cfg.resume and scoring.is_scored(folder, data.splits, "before")
        checkpoint = checkpoints.latest_valid(folder / "checkpoints") if begun else None
        with timed(results, "evaluate_s"):
            if checkpoint:
                log.info("going on from %s", checkpoint.name)
                before = scoring.earlier(folder, data.splits, "before", results)
            else:
                # In the windows that it was trained in: to learn others is not to hear better.
                with scoring.use_window(data, pretrained_window):
                    before = scoring.score(trainer, module, data, sampled, folder, "before", results)
        save(results, folder)
        try:
            with timed(results, "fit_s"), stop.polled():
                trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        finally:
            results["history"] = recorder.history
            results["cost"] |= recorder.cost() | trainers.machine(trainer)
        checkpoints.load_best_weights(trainer, module)
        with timed(results, "evaluate_s"):
            after = scoring.score(trainer, module, data, sampled, folder, "after", results)
            if whisper.processor.window != windows.FULL:
                scoring.score_in_full_window(trainer, module, data, cfg.score.full_window_clips, folder, results)
        results["scores"]["change"] = {split: change(before[split], after[split]) for split in data.splits}
        results["checkpoint"] = {"steps": trainer.global_step, **checkpoints.best(trainer)}
        results["cost"] |= trainers.machine(trainer)
        if is_main():
            whisper.save(folder / "model")
            (folder / "model" / "README.md").write_text(model_card(results), encoding="utf-8")
            log_scores(loggers[1:], results)
        for run in tracked:
            run.finish(results, data.language, data.stores["validation"].pcm)
    return results


def log_scores(loggers: list[Logger], results: Results) -> None:
    """The scores before and after, for the loggers that show them."""
    for stage in ("before", "after"):
        for split, rates in results["scores"][stage].items():
            for logger in loggers:
                logger.log_metrics({f"{stage}/{split}/{rate}": rates[rate] for rate in ("cer", "wer")})
