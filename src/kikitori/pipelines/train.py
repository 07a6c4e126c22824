"""`kikitori train`: fine-tunes a model. Read `train` from top to bottom; each line of it is one function below."""

import logging
import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.callbacks import LambdaCallback
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from kikitori.adapters.folder import add_timestamps
from kikitori.config.targets import instantiate
from kikitori.corpora.types import Split
from kikitori.data.collate import check_label_contract
from kikitori.data.datamodule import SpeechDataModule
from kikitori.metrics.error_rates import change
from kikitori.model.whisper import Whisper
from kikitori.model.window import FULL, Window
from kikitori.runs.model_card import model_card
from kikitori.runs.record import save, timed
from kikitori.runs.results import Results
from kikitori.runs.results_md import examples_table
from kikitori.runs.summary import with_languages
from kikitori.runs.wandb_logger import WandbRunLogger
from kikitori.runtime.distributed import is_main
from kikitori.runtime.errors import ConfigError
from kikitori.runtime.files import write_text
from kikitori.steps.announcements import announce, announce_best
from kikitori.steps.builders import build_data, build_model, configure_model, prepare_data
from kikitori.steps.guarding import BASE, TUNED, fail_if_worse, make_guard
from kikitori.steps.length import Length, check_schedule, training_length
from kikitori.steps.scoring import Scorer, Scores, is_scored, read_scores
from kikitori.steps.session import Session, session
from kikitori.training.batch_size_finder import find_micro_batch_sizes
from kikitori.training.callbacks import Progress, ThroughputMonitor, ValidateEvery
from kikitori.training.checkpoints import (
    CheckpointFiles,
    SaveLastCheckpoint,
    best_checkpoint,
    check_best,
    latest_valid,
    load_best_weights,
    resumed,
    saved_step,
)
from kikitori.training.history import MetricsFile, TrainingHistory, resume_loggers
from kikitori.training.lightning_module import WhisperModule, refuse_layerdrop
from kikitori.training.trainer import build_callback, build_trainer, hardware_facts

log = logging.getLogger(__name__)


def train(cfg: DictConfig | dict[str, Any], folder: Path) -> Results:
    """Fine-tunes a model and scores it before the first step and after the last; all outputs are in `folder`."""
    with session("train", cfg, folder) as run:
        data, whisper, pretrained_window = load_data_and_model(run)
        length = set_length(run, data)
        checkpoint = find_checkpoint(run, length)
        history = TrainingHistory(data.prepared.digest("validation"))
        trainer = make_trainer(run, data, length, history)
        module = make_module(run, trainer, data, whisper)
        scorer = Scorer(run, trainer, module, data)
        guard = make_guard(run, trainer, data, whisper.processor)
        before = score_before(scorer, pretrained_window)
        base = guard.read(BASE, whisper, pretrained_window) if guard else None
        fit(run, trainer, module, data, history, checkpoint)
        merge_adapter(run, whisper)
        after = score_after(scorer)
        if guard and base:
            guard.compare(base, guard.read(TUNED, whisper), whisper)
        publish(run, trainer, whisper, data, before, after)
    fail_if_worse(run)
    return run.results


def load_data_and_model(run: Session) -> tuple[SpeechDataModule, Whisper, Window]:
    """The decoded and filtered clips, the model, and the windows that the model was trained in before."""
    data = build_data(run.config)
    data.load_corpus()  # first, so that a missing corpus is found before a model is loaded
    whisper = build_model(run.config, data.languages)
    pretrained_window = whisper.processor.window
    whisper.set_window(data.window or pretrained_window)
    data = data.with_processor(whisper.processor)
    prepare_data(run.config, data, run.folder, run.results)
    configure_model(run, whisper)
    return data, whisper, pretrained_window


def set_length(run: Session, data: SpeechDataModule) -> Length:
    """The length of the training, which depends on the number of clips if it is configured in epochs."""
    length = training_length(run.config, len(data.clips["train"]))
    run.results["training"] = length.facts()
    if data.planner:
        run.results["training"]["joined"] = data.planner.facts()
    return length


def find_checkpoint(run: Session, length: Length) -> Path | None:
    """The latest intact checkpoint, to resume from; None for a new run."""
    folder = run.folder / "checkpoints"
    checkpoint = latest_valid(folder) if run.config["resume"] else None
    if checkpoint:
        log.info("resuming from %s", checkpoint.name)
    elif run.results.get("extended_from"):
        model = run.folder / "model"
        remedy = f"start a new run from the weights of this one: model.name={model}"
        if not model.is_dir():
            remedy = "its weights were not kept, either (keep=scores); start a new run in another folder"
        raise ConfigError(f"{folder} holds no checkpoint to resume from; {remedy}")
    else:
        check_schedule(run.config, length.steps)
    return checkpoint


def make_trainer(run: Session, data: SpeechDataModule, length: Length, history: TrainingHistory) -> pl.Trainer:
    """Lightning's Trainer for this data, with our callbacks and loggers, then the configured ones."""
    files = run.folder / "checkpoints"
    callbacks = [history, ValidateEvery(length.every_steps), ThroughputMonitor()]
    callbacks += [Progress(run.folder), SaveLastCheckpoint(files, length.every_steps, run.stop)]
    callbacks += [build_callback(node, files) for node in run.config["callbacks"].values()]
    loggers = [MetricsFile(run.folder), *(instantiate(node, "logger") for node in run.config["logger"].values())]
    checkpoints = CheckpointFiles(history.validation, "data" in run.config["resume_accept"])
    trainer = build_trainer(run.trainer_settings, run.folder, callbacks, loggers, length.steps, checkpoints)
    data.trainer = trainer
    start_loggers(run, trainer)
    return trainer


def start_loggers(run: Session, trainer: pl.Trainer) -> None:
    """Starts the W&B run and logs the configuration."""
    for logger in wandb_loggers(trainer):
        logger.start(run.results)
    for configured in trainer.loggers[1:]:
        configured.log_hyperparams(run.config)


def make_module(run: Session, trainer: pl.Trainer, data: SpeechDataModule, whisper: Whisper) -> WhisperModule:
    """The LightningModule with its optimizer and micro-batch sizes, and the encoder cache if configured."""
    refuse_layerdrop(whisper.model.config, trainer.world_size)
    check_label_contract(data.first_batch("train"), whisper.processor)
    optimizer = instantiate(run.config["optim"], "optim")
    recipe = {"label_smoothing": run.config["loss"]["label_smoothing"] or 0.0, "ema_decay": run.config["ema"]["decay"]}
    sizes = find_micro_batch_sizes(trainer, whisper, data, averaged=recipe["ema_decay"] is not None)
    module = WhisperModule(whisper, optimizer, run.config["trainer"].get("gradient_clip_val"), sizes, **recipe)
    if data.cache_encoder_outputs:
        with timed(run.results, "encode_s"):
            data.build_encoder_caches(trainer, whisper.model)
    return module


def score_before(scorer: Scorer, pretrained_window: Window) -> Scores:
    """Scores before training, in the windows the model came with; a resumed run reads those of the same clips."""
    run = scorer.run
    with timed(run.results, "evaluate_s"):
        sample: dict[Split, int | None] = {"train": run.config["score"]["train_clips"]}
        if run.config["resume"] and is_scored(run, scorer.data, "before", sample):
            scores = read_scores(run, scorer.data.splits, "before", scorer.module.processor.text_language)
        else:
            # In the windows it was trained in: other windows would make the model look worse than it is.
            scores = scorer.score("before", window=pretrained_window)
    save(run.results, run.folder)
    return scores


def fit(
    run: Session,
    trainer: pl.Trainer,
    module: WhisperModule,
    data: SpeechDataModule,
    history: TrainingHistory,
    checkpoint: Path | None,
) -> None:
    """Trains, from the checkpoint if there is one, and loads the weights of the best validation."""
    results, step = run.results, saved_step(checkpoint) if checkpoint else 0
    # Of a completed run that is trained further.
    results["scores"] = {"before": results["scores"]["before"]}
    if is_main():
        resume_loggers(trainer.loggers, step)
    for pause in results.get("interruptions", [])[-1:]:
        pause["step"] = step
    save(results, run.folder)
    announce(run, trainer, module, step)
    # Again, so that training draws the same random numbers whatever was searched, cached or scored before it.
    pl.seed_everything(run.config["seed"], workers=True, verbose=False)
    with timed(results, "fit_s") as add_seconds, run.stop.polled():

        def measure() -> None:
            add_seconds()
            results["history"] = history.history
            results["cost"] |= history.cost() | hardware_facts(trainer)

        def save_progress(*_: Any) -> None:
            measure()
            save(results, run.folder)

        # So that a run that is killed leaves them, too.
        trainer.callbacks.append(LambdaCallback(on_validation_end=save_progress))  # type: ignore[attr-defined]
        try:
            with resumed(trainer, checkpoint):
                trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        finally:
            measure()
    check_best(trainer, history.history)
    load_best_weights(trainer, module)
    chosen = best_checkpoint(trainer)
    if best := chosen["best"]:
        chosen |= {"best": os.path.relpath(best, run.folder), "best_step": saved_step(Path(best))}
    results["checkpoint"] = {"steps": trainer.global_step, **chosen}
    announce_best(results)


def merge_adapter(run: Session, whisper: Whisper) -> None:
    """Saves the adapter, if there is one, and merges it, so that the scores are those of the model that is saved."""
    if whisper.adapter:
        if is_main():
            whisper.save_adapter(run.folder / "adapter")
        whisper.merge_adapter()


def score_after(scorer: Scorer) -> Scores:
    """Scores of the best checkpoint; one trained in shorter windows is also scored in 30 s, as stock tools read it."""
    with timed(scorer.run.results, "evaluate_s"):
        scores = scorer.score("after")
        if scorer.module.processor.window != FULL:
            scorer.score_in_full_window(scorer.run.config["score"]["full_window_clips"])
    return scores


def publish(
    run: Session, trainer: pl.Trainer, whisper: Whisper, data: SpeechDataModule, before: Scores, after: Scores
) -> None:
    """Writes the changes of the scores, the model with its card, and the loggers' summaries."""
    results = run.results
    results["scores"]["change"] = {split: change(before[split], after[split]) for split in data.splits}
    if is_main():
        whisper.save(run.folder / "model")
        if whisper.timestamps and (run.folder / "adapter").exists():
            add_timestamps(whisper.timestamps, run.folder / "adapter")
        write_text(run.folder / "model" / "README.md", model_card(results))
        log_scores(trainer.loggers[1:], results, run.folder)
    for logger in wandb_loggers(trainer):
        logger.finish(results, whisper.processor.text_language, data.prepared.audio_caches["validation"].pcm)


def wandb_loggers(trainer: pl.Trainer) -> list[WandbRunLogger]:
    """The Trainer's W&B loggers, in the process that writes."""
    return [logger for logger in trainer.loggers if isinstance(logger, WandbRunLogger) and is_main()]


def log_scores(loggers: list[Logger], results: Results, folder: Path) -> None:
    """Logs the scores before and after training, in TensorBoard with configuration and examples; W&B has a summary."""
    scores = results["scores"]
    rates = {
        stage: {
            f"{stage}/{split}/{rate}": rates[rate]
            for split, rates in with_languages(scores[stage], "/").items()
            for rate in ("cer", "wer")
        }
        for stage in ("before", "after")
    }
    for logger in loggers:
        if isinstance(logger, WandbRunLogger):
            continue
        logger.log_metrics(rates["before"], 0)
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(results["config"], rates["after"], results["checkpoint"]["steps"])
            logger.experiment.add_text("examples", examples_table(results, folder), results["checkpoint"]["steps"])
        else:
            logger.log_metrics(rates["after"], results["checkpoint"]["steps"])
