"""`kikitori average`: the mean of tuned models, and its mixtures with their base, from none of it to all of it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from shutil import copyfile
from typing import Any, NamedTuple

from omegaconf import DictConfig
from torch import Tensor

from kikitori.guard.curve import curve_page
from kikitori.guard.figures import Counts, figures
from kikitori.guard.recordings import OWN, STOCK
from kikitori.metrics.error_rates import change, summarise
from kikitori.model.whisper import Whisper
from kikitori.model.window import FULL, Window, describe_window
from kikitori.pipelines.mixing import Weights, check_alike, check_languages, mean, mix, weights_of
from kikitori.runs.model_card import model_card
from kikitori.runs.results import FULL_WINDOW, IN_FULL_WINDOW, Results, predictions_file
from kikitori.runtime.distributed import is_main
from kikitori.runtime.errors import ConfigError
from kikitori.runtime.files import write_text
from kikitori.steps.builders import build_data, configure_model, load_model, prepare_data
from kikitori.steps.guarding import Guard, fail_if_worse, make_guard
from kikitori.steps.origin import with_origin
from kikitori.steps.scoring import Scorer, Scores
from kikitori.steps.session import Session, session
from kikitori.training.lightning_module import WhisperModule
from kikitori.training.trainer import build_trainer, hardware_facts


class Ends(NamedTuple):
    """The weights of the base and the mean of the tuned ones, and the windows that each reads in."""

    base: Weights
    tuned: Weights
    base_window: Window
    window: Window


class Choice(NamedTuple):
    """The mixture that is saved, and the reading whose windows it is saved with."""

    alpha: float
    reading: str


# The scores of a mixture in each reading; one where the model reads in the full window only.
Readings = Mapping[str, Scores]


def average(cfg: DictConfig | dict[str, Any], folder: Path) -> Results:
    """Averages the models of `runs`, mixes them with `against` for each of `alphas`, and saves the chosen one."""
    if not cfg["runs"]:
        raise ConfigError("runs: not set; pass tuned models: kikitori average outputs/my-sweep/*/")
    with session("average", with_origin(cfg, cfg["runs"][0]), folder) as run:
        trainer = build_trainer(run.trainer_settings, folder, [], [])
        data = build_data(run.config, trainer)
        data.load_corpus()  # first, so that a missing corpus is found before a model is loaded
        whisper, ends = load_weights(run)
        data = data.with_processor(whisper.processor)
        prepare_data(run.config, data, folder, run.results)
        configure_model(run, whisper)
        scorer = Scorer(run, trainer, WhisperModule(whisper), data)
        guard = make_guard(run, trainer, data, whisper.processor)
        scores: dict[float, Readings] = {}
        counts: dict[float, Counts] = {}
        for alpha in run.config["alphas"]:
            mix_into(whisper, ends, alpha)
            scores[alpha] = score_readings(scorer, alpha)
            counts[alpha] = guard.read(stage(alpha), whisper) if guard else {}
        chosen = choose(run.config, scores)
        run.results["curve"] = [curve_point(run, alpha, counts[alpha]) for alpha in scores]
        describe(run, scores, chosen, ends)
        of_base = guard and base_counts(guard, whisper, ends, min(counts), counts[min(counts)])
        mix_into(whisper, ends, chosen.alpha)
        whisper.set_timestamps(None)
        if chosen.reading == STOCK:
            whisper.set_window(FULL)
        if guard and of_base:
            guard.compare(of_base, tuned_counts(guard, whisper, chosen, counts[chosen.alpha]), whisper)
        publish(run, whisper)
        run.results["cost"] |= hardware_facts(trainer)
    fail_if_worse(run)
    return run.results


def load_weights(run: Session) -> tuple[Whisper, Ends]:
    """A model with the settings of the first of `runs`, and the ends of the curve."""
    first, *others = run.config["runs"]
    whisper = load_model({**run.config, "checkpoint": first}, "checkpoint")
    own = {"language": whisper.processor.language, "task": whisper.processor.task}
    against = load_model({**run.config, "model": own}, "against")
    check_alike({first: whisper, f"against={run.config['against']}": against})

    def tuned() -> Iterator[Mapping[str, Tensor]]:
        yield whisper.model.state_dict()
        for name in others:
            model = load_model({**run.config, "checkpoint": name}, "checkpoint")
            check_alike({first: whisper, name: model})
            check_languages({first: whisper, name: model})
            yield model.model.state_dict()

    windows = against.processor.window, whisper.processor.window
    return whisper, Ends(weights_of(against.model), mean(tuned()), *windows)


def mix_into(whisper: Whisper, ends: Ends, alpha: float) -> None:
    """Makes the model's weights those of a mixture."""
    whisper.model.load_state_dict(mix(ends.base, ends.tuned, alpha))


def stage(alpha: float, reading: str = OWN) -> str:
    """The key of a mixture's scores in a reading."""
    return f"alpha_{alpha:g}{IN_FULL_WINDOW * (reading == STOCK)}"


def score_readings(scorer: Scorer, alpha: float) -> Readings:
    """Scores a mixture in its windows, and if these are shorter than the full one, the same clips there as well."""
    if scorer.module.processor.window == FULL:
        return {OWN: scorer.score(stage(alpha))}
    clips, splits = scorer.run.config["score"]["full_window_clips"], scorer.data.splits
    own = scorer.score(stage(alpha), splits, scorer.some(clips, splits))
    return {OWN: own, STOCK: scorer.score_in_full_window(clips, stage(alpha), splits)}


def choose(config: Mapping[str, Any], scores: Mapping[float, Readings]) -> Choice:
    """The mixture and reading with the lowest CER on validation; of equal ones, that nearest to the base, and OWN.

    Of one configured `alpha` only the reading is chosen, and without validation clips OWN.
    """
    alpha = config["alpha"]
    if not all("validation" in of for readings in scores.values() for of in readings.values()):
        return Choice(float(alpha), OWN)
    cers = {
        Choice(mixed, reading): summarise(of["validation"])["cer"]
        for mixed, readings in scores.items()
        for reading, of in readings.items()
        if alpha in (None, mixed)
    }
    return min(cers, key=lambda choice: (cers[choice], choice.alpha, choice.reading != OWN))


def curve_point(run: Session, alpha: float, counts: Counts) -> dict[str, Any]:
    """The rates and the guard's figures of a mixture in each reading."""
    rates = run.results["scores"]
    full = rates.get(stage(alpha, STOCK))
    more = {"full_window_scores": full} if full else {}
    return {"alpha": alpha, "scores": rates[stage(alpha)], **more, "guard": figures(counts)}


def describe(run: Session, scores: Mapping[float, Readings], chosen: Choice, ends: Ends) -> None:
    """Makes the results those of a training: before is the first alpha in the base's windows, after the chosen one."""
    first, rates = min(scores), run.results["scores"]
    start = STOCK if ends.base_window == FULL and STOCK in scores[first] else OWN
    before, after = scores[first][start], scores[chosen.alpha][chosen.reading]
    changes = {split: change(before[split], after[split]) for split in after}
    run.results["averaged"] = {"runs": len(run.config["runs"]), **chosen._asdict()}
    run.results["scores"] = {"before": rates[stage(first, start)], "after": rates[stage(*chosen)], "change": changes}
    if chosen.reading == OWN and STOCK in scores[chosen.alpha]:
        run.results["scores"][FULL_WINDOW] = rates[stage(chosen.alpha, STOCK)]
    if is_main():
        for split in after:
            # Under the names of a training's files, by which runs are compared clip by clip.
            for name, of in (("before", stage(first, start)), ("after", stage(*chosen))):
                copyfile(predictions_file(run.folder, split, of), predictions_file(run.folder, split, name))


def base_counts(guard: Guard, whisper: Whisper, ends: Ends, first: float, counts: Counts) -> Counts:
    """The counts of the first mixture in the base's own windows, as the base reads; those of a tuned model spoil it."""
    if ends.base_window == ends.window:
        return counts
    mix_into(whisper, ends, first)
    return counts | guard.read(f"{stage(first)}_in_base_windows", whisper, ends.base_window, [OWN])


def tuned_counts(guard: Guard, whisper: Whisper, chosen: Choice, counts: Counts) -> Counts:
    """The counts of the chosen mixture in the windows that it is saved with."""
    if chosen.reading == OWN:
        return counts
    return counts | guard.read(stage(*chosen), whisper, readings=[OWN])


def publish(run: Session, whisper: Whisper) -> None:
    """Writes the model with its card, and the plot of the curve."""
    run.results["model"]["window"] = describe_window(whisper.processor.window)
    if is_main():
        whisper.save(run.folder / "model")
        write_text(run.folder / "model" / "README.md", model_card(run.results))
        write_text(run.folder / "curve.html", curve_page(run.results["curve"], run.results["averaged"]))
