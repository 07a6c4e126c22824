"""`kikitori evaluate`: scores a checkpoint or a stock model."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from kikitori.runs.record import timed
from kikitori.runs.results import Results
from kikitori.steps.builders import build_data, build_model, configure_model, load_checkpoint, prepare_data
from kikitori.steps.scoring import Scorer
from kikitori.steps.session import session
from kikitori.training.lightning_module import WhisperModule
from kikitori.training.trainer import build_trainer, hardware_facts


def evaluate(cfg: DictConfig | dict[str, Any], folder: Path) -> Results:
    """Scores a checkpoint or a stock model on the chosen splits; all outputs are in `folder`."""
    with session("evaluate", cfg, folder) as run:
        trainer = build_trainer(run.trainer_settings, folder, [], [])
        data = build_data(run.config, trainer)
        data.load_corpus()  # first, so that a missing corpus is found before a model is loaded
        whisper = load_checkpoint(run.config) if run.config["checkpoint"] else build_model(run.config, data.languages)
        whisper.set_window(data.window or whisper.processor.window)
        data = data.with_processor(whisper.processor)
        prepare_data(run.config, data, folder, run.results)
        configure_model(run, whisper)
        with timed(run.results, "evaluate_s"):
            Scorer(run, trainer, WhisperModule(whisper), data).score("evaluated")
        run.results["cost"] |= hardware_facts(trainer)
    return run.results
