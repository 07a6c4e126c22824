"""`kikitori guard`: a tuned model next to its base on what its corpus does not show."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from kikitori.model.processor import Processor
from kikitori.runs.results import Results
from kikitori.runtime.errors import ConfigError, ModelError
from kikitori.steps.builders import build_data, configure_model, load_model, prepare_data
from kikitori.steps.guarding import BASE, TUNED, fail_if_worse, make_guard
from kikitori.steps.origin import with_origin
from kikitori.steps.session import session
from kikitori.training.trainer import build_trainer, hardware_facts


def guard(cfg: DictConfig | dict[str, Any], folder: Path) -> Results:
    """Compares the model of `checkpoint` with that of `against`; all outputs are in `folder`."""
    if not cfg["checkpoint"]:
        raise ConfigError("checkpoint: not set; pass the tuned model: kikitori guard outputs/my-run")
    if cfg["guard"]["clips"] == 0:
        raise ConfigError("guard.clips=0: there is nothing to compare; set it above 0")
    with session("guard", with_origin(cfg, cfg["checkpoint"]), folder) as run:
        trainer = build_trainer(run.trainer_settings, folder, [], [])
        data = build_data(run.config, trainer)
        data.load_corpus()  # first, so that a missing corpus is found before a model is loaded
        tuned = load_model(run.config, "checkpoint")
        data = data.with_processor(tuned.processor)
        prepare_data(run.config, data, folder, run.results)
        configure_model(run, tuned)
        both = make_guard(run, trainer, data, tuned.processor)
        assert both is not None
        of_tuned = both.read(TUNED, tuned)
        own = {"language": tuned.processor.language, "task": tuned.processor.task}
        base = load_model({**run.config, "model": own}, "against")
        check_comparable(tuned.processor, base.processor)
        both.compare(both.read(BASE, base), of_tuned, tuned)
        run.results["cost"] |= hardware_facts(trainer)
    fail_if_worse(run)
    return run.results


def check_comparable(tuned: Processor, base: Processor) -> None:
    """Raises ModelError for models with other windows or vocabularies, which do not read the same recordings."""
    if (tuned.frames, len(tuned.tokenizer)) != (base.frames, len(base.tokenizer)):
        one, other = (f"a window of {p.window_s:g} s and {len(p.tokenizer)} tokens" for p in (tuned, base))
        raise ModelError(f"checkpoint has {one}, against {other}; give the model that was fine-tuned")
