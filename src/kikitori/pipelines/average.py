"""`kikitori average`: the mean of tuned models, and its mixtures with their base, from none of it to all of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from kikitori.guard.curve import curve_page
from kikitori.guard.figures import Counts, figures
from kikitori.metrics.error_rates import change
from kikitori.model.whisper import Whisper
from kikitori.pipelines.mixing import Weights, check_alike, mean, mix, weights_of
from kikitori.runs.model_card import model_card
from kikitori.runs.results import Results
from kikitori.runtime.distributed import is_main
from kikitori.runtime.errors import ConfigError
from kikitori.runtime.files import write_text
from kikitori.steps.builders import build_data, configure_model, load_model, prepare_data
from kikitori.steps.guarding import fail_if_worse, make_guard
from kikitori.steps.origin import with_origin
from kikitori.steps.scoring import Scorer, Scores
from kikitori.steps.session import Session, session
from kikitori.training.lightning_module import WhisperModule
from kikitori.training.trainer import build_trainer, hardware_facts


def average(cfg: DictConfig | dict[str, Any], folder: Path) -> Results:
    """Averages the models of `runs`, mixes them with `against` for each of `alphas`, and saves the chosen one."""
    if not cfg["runs"]:
        raise ConfigError("runs: not set; pass tuned models: kikitori average outputs/my-sweep/*/")
    with session("average", with_origin(cfg, cfg["runs"][0]), folder) as run:
        trainer = build_trainer(run.trainer_settings, folder, [], [])
        data = build_data(run.config, trainer)
        data.load_corpus()  # first, so that a missing corpus is found before a model is loaded
        whisper, base, tuned = load_weights(run)
        data = data.with_processor(whisper.processor)
        prepare_data(run.config, data, folder, run.results)
        configure_model(run, whisper)
        scorer = Scorer(run, trainer, WhisperModule(whisper), data)
        guard = make_guard(run, trainer, data, whisper.processor)
        scores: dict[float, Scores] = {}
        counts: dict[float, Counts] = {}
        for alpha in run.config["alphas"]:
            whisper.model.load_state_dict(mix(base, tuned, alpha))
            scores[alpha] = scorer.score(stage(alpha))
            counts[alpha] = guard.read(stage(alpha), whisper) if guard else {}
        chosen = choose(run, scores)
        whisper.model.load_state_dict(mix(base, tuned, chosen))
        run.results["curve"] = [
            {"alpha": alpha, "scores": run.results["scores"][stage(alpha)], "guard": figures(counts[alpha])}
            for alpha in scores
        ]
        describe(run, scores, chosen)
        if guard:
            guard.compare(counts[min(counts)], counts[chosen])
        publish(run, whisper)
        run.results["cost"] |= hardware_facts(trainer)
    fail_if_worse(run)
    return run.results


def load_weights(run: Session) -> tuple[Whisper, Weights, Weights]:
    """A model with the settings of the first of `runs`, the weights of the base, and the mean of the tuned ones."""
    models = {name: load_model({**run.config, "checkpoint": name}, "checkpoint") for name in run.config["runs"]}
    for model in models.values():
        model.merge_adapter()  # of a .ckpt
    whisper = next(iter(models.values()))
    own = {"language": whisper.processor.language, "task": whisper.processor.task}
    against = load_model({**run.config, "model": own}, "against")
    check_alike({**models, f"against={run.config['against']}": against})
    return whisper, weights_of(against.model), mean([weights_of(model.model) for model in models.values()])


def stage(alpha: float) -> str:
    """The key of a mixture's scores."""
    return f"alpha_{alpha:g}"


def choose(run: Session, scores: Mapping[float, Scores]) -> float:
    """The configured alpha, or the one with the lowest CER on validation: of equal ones, that nearest to the base."""
    if (alpha := run.config["alpha"]) is not None:
        return float(alpha)
    return min(scores, key=lambda alpha: (run.results["scores"][stage(alpha)]["validation"]["cer"], alpha))


def describe(run: Session, scores: Mapping[float, Scores], chosen: float) -> None:
    """Makes the results those of a training: before is the first alpha, after the chosen one."""
    first, rates = min(scores), run.results["scores"]
    before, after = scores[first], scores[chosen]
    changes = {split: change(before[split], after[split]) for split in after}
    run.results["averaged"] = {"runs": len(run.config["runs"]), "alpha": chosen}
    run.results["scores"] = {"before": rates[stage(first)], "after": rates[stage(chosen)], "change": changes}


def publish(run: Session, whisper: Whisper) -> None:
    """Writes the model with its card, and the plot of the curve."""
    if is_main():
        whisper.save(run.folder / "model")
        write_text(run.folder / "model" / "README.md", model_card(run.results))
        write_text(run.folder / "curve.html", curve_page(run.results["curve"], run.results["averaged"]["alpha"]))
