"""`kikitori evaluate`: scores a checkpoint or a stock model."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from kikitori.adapters.folder import is_adapter
from kikitori.model.loading import choose_language_and_task, load_whisper, rebuild_whisper
from kikitori.model.source import model_folder
from kikitori.model.whisper import Whisper
from kikitori.pipelines.builders import build_data, build_model, configure_model, prepare_data
from kikitori.pipelines.scoring import Scorer
from kikitori.pipelines.session import session
from kikitori.runs.record import timed
from kikitori.runs.results import Results
from kikitori.runtime.errors import ConfigError, KikitoriError, ModelError, one_line
from kikitori.training.checkpoints import read_checkpoint
from kikitori.training.lightning_module import WhisperModule
from kikitori.training.trainer import build_trainer, hardware_facts


def evaluate(cfg: DictConfig | dict[str, Any], folder: Path) -> Results:
    """Scores a checkpoint or a stock model on the chosen splits; all outputs are in `folder`."""
    with session("evaluate", cfg, folder) as run:
        trainer = build_trainer(run.trainer_settings, folder, [], [])
        data = build_data(run.config, trainer)
        data.load_corpus()  # first, so that a missing corpus is found before a model is loaded
        whisper = load_checkpoint(run.config) if run.config["checkpoint"] else build_model(run.config)
        whisper.set_window(data.window or whisper.processor.window)
        data = data.with_processor(whisper.processor)
        prepare_data(run.config, data, folder, run.results)
        configure_model(run, whisper)
        with timed(run.results, "evaluate_s"):
            Scorer(run, trainer, WhisperModule(whisper), data).score("evaluated")
        run.results["cost"] |= hardware_facts(trainer)
    return run.results


def load_checkpoint(config: dict[str, Any]) -> Whisper:
    """The model of `checkpoint`: a run folder, a model folder, an adapter's folder, or a .ckpt file.

    Its language and task are those it was trained with, unless the configuration sets others.
    """
    path = Path(config["checkpoint"]).expanduser()
    given, default = (config["model"]["language"], config["model"]["task"]), config["data"]["language"]
    if path.is_dir() and is_adapter(path):
        return load_whisper(str(path), *given, base=config["model"].get("base"), default_language=default)
    if path.is_dir():
        return load_whisper(str(model_folder(path, f"checkpoint={path}")), *given, default_language=default)
    if not path.is_file():
        raise ConfigError(f"checkpoint={path} does not exist; give a run folder, a model folder, or a .ckpt file")
    try:
        checkpoint = read_checkpoint(path)
        recipe = checkpoint["hyper_parameters"]["recipe"]
        language, task, notes = choose_language_and_task(
            path.name, given, (recipe["language"], recipe["task"]), default
        )
        whisper = rebuild_whisper({**recipe, "language": language, "task": task})
        whisper.notes[:] = notes
        state = {key.removeprefix("model."): value for key, value in checkpoint["state_dict"].items()}
        whisper.model.load_state_dict(state)
    except KikitoriError:
        raise
    except Exception as error:  # a checkpoint of another program may lack or add anything
        reason = one_line(error)
        raise ModelError(f"checkpoint={path} was not written by kikitori: {reason}") from error
    return whisper
