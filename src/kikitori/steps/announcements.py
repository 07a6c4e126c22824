"""The lines of a run's log that state what is trained, and what came of it."""

import logging
from collections.abc import Mapping

import pytorch_lightning as pl

from kikitori.model.window import FULL
from kikitori.runs.results import Results
from kikitori.runtime.console import duration
from kikitori.steps.session import Session
from kikitori.training.lightning_module import WhisperModule
from kikitori.training.trainer import hardware_facts

log = logging.getLogger(__name__)


def announce(run: Session, trainer: pl.Trainer, module: WhisperModule, step: int) -> None:
    """Logs what is about to be trained, from `step` on."""
    length, batch = run.results["training"], run.config["data"]["global_batch_size"]
    if joined := length.get("joined"):
        log.info(
            "training examples hold %.3g clips and %.3g s on average: an epoch begins one with each clip",
            *(joined["clips_per_example"], joined["seconds_per_example"]),
        )
    if step < length["steps"]:
        log.info(
            "training: steps %d to %d of %d %s each (%s), a validation every %d steps; precision %s on %s%s",
            *(step + 1, length["steps"], batch, "examples" if joined else "clips"),
            *(epochs(length, step), length["every_steps"]),
            *(run.trainer_settings["precision"], hardware_facts(trainer)["device"]),
            "" if run.results.get("extended_from") else scoring_afterwards(run, module),
        )
    else:
        log.info("%d of %d steps are done: nothing is left to train", step, length["steps"])


def epochs(length: Mapping[str, float], step: int) -> str:
    """The passes over the training clips from `step` on, and all of them: `1 of 3 epochs`."""
    whole, left = (steps / length["steps_per_epoch"] for steps in (length["steps"], length["steps"] - step))
    return f"{left:.3g} of {whole:.3g} epochs" if step else f"{whole:.3g} epoch{'s' * (whole != 1)}"


def scoring_afterwards(run: Session, module: WhisperModule) -> str:
    """How long the scoring after training takes, by that before; of a run trained further, costs include both."""
    seconds = run.results["cost"]["evaluate_s"] * (1 + share_scored_twice(run, module))
    return f"; scoring afterwards takes about {duration(seconds)}"


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
