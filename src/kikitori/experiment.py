"""A run, from configuration to results; read `train` from top to bottom. `cfg` goes no deeper than this file."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import datasets
import pytorch_lightning as pl
import torch
import transformers
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger, Logger

from kikitori import trainer as trainers
from kikitori import whisper as whispers
from kikitori.callbacks import Recorder, ValidateEvery
from kikitori.clips import Split
from kikitori.collate import preflight
from kikitori.config import check
from kikitori.datamodule import SpeechDataModule
from kikitori.errors import ConfigError
from kikitori.front_end import FrontEnd
from kikitori.metrics import ClipScore, change, prediction, score_clips, summarise
from kikitori.module import WhisperModule
from kikitori.monitor import Monitor
from kikitori.paths import overrides
from kikitori.progress import shows_bars
from kikitori.report import git_state, markdown, print_results, versions, write_json, write_lines
from kikitori.text import NORMALISER, segmenter
from kikitori.tracking import RunLogger, close
from kikitori.whisper import Whisper

log = logging.getLogger(__name__)

Results = dict[str, Any]
Scores = dict[Split, list[ClipScore]]


def train(cfg: DictConfig, folder: Path) -> Results:
    """Fine-tune, with scores before the first step and after the last; everything lands in `folder`."""
    with _run("train", cfg, folder) as results:
        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        recorder = Recorder()
        callbacks = [recorder, ValidateEvery(cfg.validation.every_steps), LearningRateMonitor("step"), Monitor()]
        callbacks += map(instantiate, cfg.callbacks.values())
        loggers = [CSVLogger(folder, name="", version=""), *map(instantiate, cfg.logger.values())]
        trainer = trainers.build(plain(cfg.trainer), folder, callbacks, loggers)
        tracked = [logger for logger in loggers if isinstance(logger, RunLogger)]
        for run in tracked:
            run.begin(results)
        for logger in loggers[1:]:
            logger.log_hyperparams(plain(cfg))
        data = build_data(cfg)
        data.read_once()
        whisper: Whisper = instantiate(cfg.model, _partial_=True, _convert_="all")()
        whisper.limit_generation(**cfg.generation)
        set_up(data, whisper.front_end, folder, results)
        describe(results, whisper, model_name(cfg))
        preflight(next(iter(data.train_dataloader())), whisper.front_end)

        module = WhisperModule(whisper, instantiate(cfg.optim, _convert_="all"))
        with _timed(results, "evaluate_s"):
            before = score(trainer, module, data, cfg.score.train_clips, folder, "before", results)
        with _timed(results, "fit_s"):
            trainer.fit(module, datamodule=data)
        take_best(trainer, module)
        with _timed(results, "evaluate_s"):
            after = score(trainer, module, data, cfg.score.train_clips, folder, "after", results)
        results["scores"]["change"] = {split: change(before[split], after[split]) for split in data.splits}
        results["history"] = recorder.history
        results["checkpoint"] = {"steps": trainer.global_step, **_best(trainer)}
        results["cost"] |= {"train_clips_per_s": recorder.train_clips / max(recorder.train_s, 1e-9)}
        results["cost"] |= trainers.machine(trainer)
        whisper.save(folder / "model")
        log_scores(loggers[1:], results)
        for run in tracked:
            run.conclude(results, data.language, data.stores["validation"].pcm)
    return results


def evaluate(cfg: DictConfig, folder: Path) -> Results:
    """Score a checkpoint or a stock model on the chosen splits."""
    with _run("evaluate", cfg, folder) as results:
        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        trainer = trainers.build(plain(cfg.trainer), folder, [], [])
        data = build_data(cfg)
        data.splits = list(cfg.splits)
        data.read_once()
        whisper = checkpoint_model(cfg) if cfg.checkpoint else instantiate(cfg.model, _partial_=True, _convert_="all")()
        whisper.limit_generation(**cfg.generation)
        set_up(data, whisper.front_end, folder, results)
        describe(results, whisper, model_name(cfg))
        module = WhisperModule(whisper)
        with _timed(results, "evaluate_s"):
            score(trainer, module, data, cfg.score.train_clips, folder, "evaluated", results)
        results["cost"] |= trainers.machine(trainer)
    return results


def prepare(cfg: DictConfig, folder: Path) -> SpeechDataModule:
    """Read and decode a corpus into the store, and tell what would be left out; no model is needed."""
    check(cfg)
    quieten()
    data = build_data(cfg)
    set_up(data, None, folder, {"cost": {}})
    return data


def build_data(cfg: DictConfig) -> SpeechDataModule:
    """The configured corpus, not read yet."""
    # Partial, so that an error comes as it is and not wrapped in one of Hydra's.
    return instantiate(cfg.data, _partial_=True, _convert_="all")(seed=cfg.seed)


def set_up(data: SpeechDataModule, front_end: FrontEnd | None, folder: Path, results: Results) -> None:
    """Decode and select; whatever comes of it, rejects.jsonl tells what was left out."""
    data.front_end = front_end
    try:
        with _timed(results, "prepare_s"):
            data.setup()
    finally:
        write_lines(folder / "rejects.jsonl", data.reject_rows())
    results["data"] = data.summary()
    results["scoring"] = {"normaliser": NORMALISER, "segmenter": segmenter(data.language)}
    for split, facts in results["data"]["splits"].items():
        log.info("%s: %d clips, %.0f s", split, facts["clips"], facts["seconds"])
    if data.rejects:
        log.info("left out: %s", results["data"]["rejects"])


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A node as plain values, interpolations resolved."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


def score(
    trainer: pl.Trainer,
    module: WhisperModule,
    data: SpeechDataModule,
    train_clips: int | None,
    folder: Path,
    stage: str,
    results: Results,
) -> Scores:
    """Read every clip of the data's splits (a sample of train), write the predictions, put the rates under `stage`."""
    scores: Scores = {}
    results["scores"][stage] = {}
    for split in data.splits:
        log.info("scoring %s %s", split, stage)
        loader = data.score_dataloader(split, train_clips if split == "train" else None)
        batches: Any = trainer.predict(module, loader)
        clips, references, hypotheses = zip(*(row for batch in batches for row in batch), strict=True)
        scores[split] = score_clips(references, hypotheses, data.language)
        predictions = map(prediction, clips, references, hypotheses, scores[split])
        write_lines(folder / "predictions" / f"{split}_{stage}.jsonl", predictions)
        results["scores"][stage][split] = summarise(scores[split])
    return scores


def take_best(trainer: pl.Trainer, module: WhisperModule) -> None:
    """Put the best checkpoint's weights into the module: what is scored and saved. The test split has no say in it."""
    path = _best(trainer)["best"]
    if path:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        module.load_state_dict(state)


def _best(trainer: pl.Trainer) -> dict[str, Any]:
    callback: Any = trainer.checkpoint_callback
    value = callback.best_model_score if callback else None
    return {
        "best": callback.best_model_path if callback else "",
        "monitor": callback.monitor if callback else None,
        "value": None if value is None else float(value),
    }


def checkpoint_model(cfg: DictConfig) -> Whisper:
    """The model of a run folder, a model folder, or a .ckpt file."""
    path = Path(cfg.checkpoint).expanduser()
    language, task = cfg.model.language, cfg.model.task
    if path.is_dir():
        return whispers.load(str(path / "model" if (path / "model").is_dir() else path), language, task)
    if not path.is_file():
        raise ConfigError(f"checkpoint={path} does not exist; give a run folder, a model folder, or a .ckpt file")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    whisper = whispers.rebuild({**checkpoint["hyper_parameters"]["recipe"], "language": language, "task": task})
    state = {key.removeprefix("model."): value for key, value in checkpoint["state_dict"].items()}
    whisper.model.load_state_dict(state)
    return whisper


def model_name(cfg: DictConfig) -> str:
    """What a table calls the model: its Hub name's or folder's last part, a checkpoint's run and file."""
    path = Path(cfg.get("checkpoint") or cfg.model.get("name", "micro")).resolve()
    if path.suffix == ".ckpt":
        return f"{path.parents[1].name}/{path.name}"
    # A run's model lies in a folder of that name; the run's own says more.
    return path.parent.name if path.name == "model" else path.name


def describe(results: Results, whisper: Whisper, name: str) -> None:
    """Put the model into the results."""
    parameters, window_s = whisper.model.num_parameters(), whisper.front_end.window_s
    results["model"] = {"name": name, "parameters": parameters, "window_s": window_s}


def log_scores(loggers: list[Logger], results: Results) -> None:
    """The scores before and after, for the loggers that show them."""
    for stage in ("before", "after"):
        for split, rates in results["scores"][stage].items():
            for logger in loggers:
                logger.log_metrics({f"{stage}/{split}/{rate}": rates[rate] for rate in ("cer", "wer")})


@contextmanager
def _run(command: str, cfg: DictConfig, folder: Path) -> Iterator[Results]:
    """Check, start results.json, and write it whatever happens; print the table where all went well."""
    check(cfg)
    if (folder / "results.json").exists():
        raise ConfigError(f"hydra.run.dir={folder} already holds a run; choose another folder")
    quieten()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    results: Results = {"status": "running", "command": command, "versions": versions(), "git": git_state()}
    results |= {"config": plain(cfg), "overrides": overrides(), "scores": {}, "cost": {}}
    write_json(folder / "results.json", results)
    try:
        yield results
        results["status"] = "completed"
    except BaseException as error:
        results |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        raise
    finally:
        write_json(folder / "results.json", results)
        if where := close(results["status"]):
            print(f"Weights & Biases: {where}")
    (folder / "results.md").write_text(markdown(results), encoding="utf-8")
    print_results(results, folder)


def quieten() -> None:
    """Keep the libraries' hints about their own defaults, and their bars where nobody watches, out of the output."""
    transformers.logging.set_verbosity_error()
    if not shows_bars():
        transformers.utils.logging.disable_progress_bar()
        datasets.disable_progress_bars()
    trainers.quieten()


@contextmanager
def _timed(results: Results, key: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    results["cost"][key] = results["cost"].get(key, 0.0) + time.perf_counter() - start
