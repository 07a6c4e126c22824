"""The lines of a run's log that state what is trained, and what came of it."""

import logging

import pytorch_lightning as pl

from kikitori.model.window import FULL
from kikitori.pipelines.session import Session
from kikitori.runs.results import Results
from kikitori.runtime.console import duration
from kikitori.training.lightning_module import WhisperModule
from kikitori.training.trainer import hardware_facts

log = logging.getLogger(__name__)


def announce(run: Session, trainer: pl.Trainer, module: WhisperModule, step: int) -> None:
    """Logs what is about to be trained, from `step` on."""
    length, batch = run.results["training"], run.config["data"]["global_batch_size"]
    if step < length["steps"]:
        log.info(
            "training: steps %d to %d of %d clips each (%.1f epochs), a validation every %d steps; precision %s on %s; "
            "scoring afterwards takes about %s",
            *(step + 1, length["steps"], batch, length["epochs"], length["every_steps"]),
            *(run.trainer_settings["precision"], hardware_facts(trainer)["device"]),
            duration(run.results["cost"]["evaluate_s"] * (1 + share_scored_twice(run, module))),
        )


def share_scored_twice(run: Session, module: WhisperModule) -> float:
    """The share of the scored clips that are scored in the full window as well after training."""
    if module.processor.window == FULL:
        return 0.0
    clips = {split: rates["clips"] for split, rates in run.results["scores"]["before"].items()}
    most = run.config["score"]["full_window_clips"]
    twice = sum(min(most or count, count) for split, count in clips.items() if split != "train")
    return twice / sum(clips.values())


def announce_best(results: Results) -> None:
    """Logs how long the training took, and which checkpoint is scored and saved."""
    chosen = results["checkpoint"]
    best = f"the best by {chosen['monitor']}, step {chosen['best_step']}" if chosen["best"] else "the last one"
    parts = " in all parts" if results.get("interruptions") else ""
    log.info("training took %s%s; scored and saved is %s", duration(results["cost"]["fit_s"]), parts, best)
