"""The steps that pipelines share: build the data module, decode and filter its clips, load the model."""

import logging
from itertools import chain
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from kikitori.config.targets import instantiate
from kikitori.corpora.types import SPLITS
from kikitori.data.datamodule import SpeechDataModule
from kikitori.data.filters import doubtful_texts
from kikitori.metrics.normalizer import text_rules
from kikitori.model.whisper import Whisper
from kikitori.model.window import describe_window
from kikitori.pipelines.session import Session
from kikitori.runs.record import timed
from kikitori.runs.results import Results
from kikitori.runs.resume import check_data
from kikitori.runtime.console import duration
from kikitori.runtime.distributed import is_main
from kikitori.runtime.errors import DataError
from kikitori.runtime.files import write_lines

log = logging.getLogger(__name__)


def build_data(config: dict[str, Any], trainer: pl.Trainer | None = None) -> SpeechDataModule:
    """The configured data module, whose corpus is not read yet."""
    more = {"seed": config["seed"], "load_splits": config.get("splits", SPLITS), "trainer": trainer}
    data: SpeechDataModule = instantiate(config["data"], "data", **more)
    return data


def build_model(config: dict[str, Any]) -> Whisper:
    """The configured model with its adapter. Where no language is set, its own, or else that of the corpus."""
    settings, language = config["model"], config["data"]["language"]
    if settings["_target_"] == "kikitori.load_whisper":
        more = {"default_language": language}
    else:  # a model that is made here, which has no language of its own
        more = {k: v for k, v in (("language", language), ("task", "transcribe")) if settings.get(k) is None}
    whisper: Whisper = instantiate(settings, "model", **more)
    if config.get("adapter"):
        whisper.add_adapter(instantiate(config["adapter"], "adapter"))
    return whisper


def prepare_data(config: dict[str, Any], data: SpeechDataModule, folder: Path, results: Results) -> None:
    """Decodes and filters the clips. rejects.jsonl lists those that were left out, even if this fails.

    Raises DataError if too few clips are left, ConfigError if a resumed run finds other clips.
    """
    rejects = folder / "rejects.jsonl"
    try:
        with timed(results, "prepare_s"):
            data.setup()
    except DataError as error:
        if data.rejects:
            raise DataError(f"{error.args[0]}\n  {rejects} lists each clip that is left out") from error
        raise
    finally:
        if is_main():
            write_lines(rejects, data.reject_rows())
    summary = data.summary()
    check_data(results, summary, config.get("resume_accept", []), folder)
    results["data"] = summary
    for split, facts in summary["splits"].items():
        log.info("%s: %d clips, %s", split, facts["clips"], duration(facts["seconds"]))
    if summary["rejects"]:
        log.info("left out: %s", ", ".join(f"{count} {reason}" for reason, count in summary["rejects"].items()))
    for what, names in doubtful_texts(chain.from_iterable(data.clips.values())).items():
        summary.setdefault("doubtful_texts", {})[what] = len(names)
        log.info("%d transcripts hold %s, such as that of %s; they are used as they are", len(names), what, names[0])


def configure_model(session: Session, whisper: Whisper) -> None:
    """Sets how the model generates, and describes it in the results."""
    whisper.configure_generation(**session.config["generation"])
    session.results["model"] = {
        "name": model_name(session.config),
        "parameters": whisper.model.num_parameters(),
        "window_s": whisper.processor.window_s,
        "window": describe_window(whisper.processor.window),
        "language": whisper.processor.language,
        "task": whisper.processor.task,
        **({"adapter": adapter_facts(whisper)} if whisper.adapter else {}),
        **({"notes": whisper.notes} if whisper.notes else {}),
    }
    rules, earlier = text_rules(whisper.processor.text_language), session.results.get("scoring")
    if earlier and earlier | rules != earlier:  # resumed by another version
        log.info("from here on scored by %(normaliser)s and words by %(segmenter)s; earlier validations are not", rules)
    session.results["scoring"] = rules


def adapter_facts(whisper: Whisper) -> dict[str, Any]:
    """The kind of a model's adapter, the number of its layers, and of its weights, which alone are trained."""
    trained = sum(weight.numel() for weight in whisper.model.parameters() if weight.requires_grad)
    layers = len(whisper.arguments["adapter"]["modules"])
    return {"kind": whisper.arguments["adapter"]["kind"], "layers": layers, "parameters": trained}


def model_name(config: dict[str, Any]) -> str:
    """The model's name in tables: the last part of its Hub name or folder, or a checkpoint's run and file."""
    path = Path(config.get("checkpoint") or config["model"].get("name", "micro")).resolve()
    if path.suffix == ".ckpt":
        return f"{path.parents[1].name}/{path.name}"
    # A run saves its model in a folder called `model`, and its adapter in `adapter`; the run's own name says more.
    return path.parent.name if path.name in ("model", "adapter") else path.name
