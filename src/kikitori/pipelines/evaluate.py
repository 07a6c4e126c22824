"""Scores a checkpoint or a stock model."""

from pathlib import Path

import pytorch_lightning as pl
from omegaconf import DictConfig

from kikitori.config.overrides import to_plain
from kikitori.config.targets import instantiate
from kikitori.model import loading
from kikitori.model.whisper import Whisper
from kikitori.pipelines import scoring
from kikitori.pipelines.builders import build_data, configure_generation, describe, model_name, on_all_devices, set_up
from kikitori.runs.record import record, timed
from kikitori.runs.results import Results
from kikitori.runtime.errors import ConfigError, KikitoriError, ModelError
from kikitori.runtime.signals import handle_signals
from kikitori.training import checkpoints
from kikitori.training import trainer as trainers
from kikitori.training.lightning_module import WhisperModule


def evaluate(cfg: DictConfig, folder: Path) -> Results:
    """Score a checkpoint or a stock model on the chosen splits."""
    with (
        handle_signals() as stop,
        record("evaluate", cfg, folder) as results,
        on_all_devices("evaluate", cfg, folder, results, stop) as settings,
    ):
        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        trainer = trainers.build_trainer(settings, folder, [], [])
        data = build_data(cfg, trainer)
        data.splits = list(cfg.splits)
        data.load_corpus()
        whisper = checkpoint_model(cfg) if cfg.checkpoint else instantiate(cfg.model, _partial_=True, _convert_="all")()
        whisper = whisper.with_window(data.window or whisper.processor.window)
        set_up(cfg, data, whisper.processor, folder, results)
        configure_generation(whisper, to_plain(cfg.generation), data)
        describe(results, whisper, model_name(cfg))
        module = WhisperModule(whisper)
        with timed(results, "evaluate_s"):
            scoring.score(trainer, module, data, {"train": cfg.score.train_clips}, folder, "evaluated", results)
        results["cost"] |= trainers.machine(trainer)
    return results


def checkpoint_model(cfg: DictConfig) -> Whisper:
    """The model of a run folder, a model folder, or a .ckpt file."""
    path = Path(cfg.checkpoint).expanduser()
    language, task = cfg.model.language, cfg.model.task
    if path.is_dir():
        return loading.load_whisper(str(path / "model" if (path / "model").is_dir() else path), language, task)
    if not path.is_file():
        raise ConfigError(f"checkpoint={path} does not exist; give a run folder, a model folder, or a .ckpt file")
    try:
        checkpoint = checkpoints.read_checkpoint(path)
        whisper = loading.rebuild_whisper(
            {**checkpoint["hyper_parameters"]["recipe"], "language": language, "task": task}
        )
        state = {key.removeprefix("model."): value for key, value in checkpoint["state_dict"].items()}
        whisper.model.load_state_dict(state)
    except KikitoriError:
        raise
    except Exception as error:  # whatever is missing in one that is not ours, or does not fit
        reason = str(error).splitlines()[0]
        raise ModelError(f"checkpoint={path} is no checkpoint of kikitori's: {reason}") from error
    return whisper
