"""The steps that pipelines share: build the data module, decode and filter its clips, load the model."""

import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from kikitori.adapters.folder import is_adapter
from kikitori.config.targets import instantiate
from kikitori.corpora.types import SPLITS
from kikitori.data.datamodule import SpeechDataModule
from kikitori.data.filters import doubtful_texts
from kikitori.metrics.normalizer import text_rules
from kikitori.model.limits import languages as checked_languages
from kikitori.model.loading import choose_language_and_task, load_whisper, rebuild_whisper
from kikitori.model.processor import whisper_code
from kikitori.model.source import is_path, model_folder
from kikitori.model.whisper import Whisper
from kikitori.model.window import describe_window
from kikitori.references.names import parse_reference
from kikitori.runs.record import timed
from kikitori.runs.results import Results, name_of_model
from kikitori.runs.resume import check_data
from kikitori.runtime.console import duration
from kikitori.runtime.distributed import is_main
from kikitori.runtime.errors import ConfigError, DataError, KikitoriError, ModelError, one_line
from kikitori.runtime.files import expanded, write_lines
from kikitori.steps.session import Session
from kikitori.training.checkpoints import read_checkpoint

log = logging.getLogger(__name__)


def build_data(config: dict[str, Any], trainer: pl.Trainer | None = None) -> SpeechDataModule:
    """The configured data module, whose corpus is not read yet."""
    more = {"seed": config["seed"], "load_splits": config.get("splits", SPLITS), "trainer": trainer}
    if "augment" in config:  # of a training
        more["augment"] = instantiate(config["augment"], "augment")
    if "joining" in config:  # in training
        more["joining"] = instantiate(config["joining"], "joining")
    data: SpeechDataModule = instantiate(config["data"], "data", **more)
    return data


def build_model(config: dict[str, Any], languages: Sequence[str] = ()) -> Whisper:
    """The configured model with its adapter. Where no language is set, its own, or else that of the corpus.

    languages: those that the clips state; of them the model has the one that is set, or else the first.
    """
    settings, language = config["model"], config["data"]["language"]
    if languages:
        given = settings.get("language")
        own = whisper_code(given) if given else None
        if own and own not in languages:
            first = f"{languages[0]}, the first of its languages, is that of the model"
            log.warning("model.language=%s, but the corpus has no clips in it: %s", given, first)
        settings = {**settings, "language": own if own in languages else languages[0]}
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


def load_checkpoint(config: dict[str, Any]) -> Whisper:
    """The model of `checkpoint`: a run folder, a model folder, an adapter's folder, a .ckpt file, or a reference.

    Its language and task are those it was trained with, unless the configuration sets others.
    """
    if parse_reference(config["checkpoint"]):
        return load_named(config, "checkpoint")
    path = expanded(config["checkpoint"])
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
        base = recipe.get("name") or ""
        if is_path(base) and not expanded(base).exists():
            raise ModelError(
                f"checkpoint={path} was trained from {base}, which does not exist; start the command in the folder in "
                "which the run was started, or give the run's model/ folder instead"
            )
        own = (recipe["language"], recipe["task"])
        languages = checked_languages(recipe.get("languages", []), f"checkpoint={path} has ")
        language, task, notes = choose_language_and_task(path.name, given, own, default, languages)
        whisper = rebuild_whisper({**recipe, "language": language, "task": task})
        whisper.notes[:] = notes
        state = {key.removeprefix("model."): value for key, value in checkpoint["state_dict"].items()}
        whisper.model.load_state_dict(state)
        whisper.merge_adapter()
    except KikitoriError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"checkpoint={path}: {error}") from error
    except Exception as error:  # a checkpoint of another program may lack or add anything
        reason = one_line(error)
        raise ModelError(f"checkpoint={path} was not written by kikitori: {reason}") from error
    return whisper


def load_model(config: dict[str, Any], key: str) -> Whisper:
    """The model of `checkpoint` or `against`: a folder, a .ckpt file, a name on the Hub, or a reference."""
    name = config[key]
    exists = expanded(name).exists()
    whisper = load_checkpoint({**config, "checkpoint": name}) if exists else load_named(config, key)
    whisper.configure_generation(**config["generation"])
    return whisper


def load_named(config: dict[str, Any], key: str) -> Whisper:
    """The model of `checkpoint` or `against`, which is no path. Errors name the key."""
    model, default = config["model"], config["data"]["language"]
    base = model.get("base") if key == "checkpoint" else None
    try:
        return load_whisper(config[key], model["language"], model["task"], base=base, default_language=default)
    except ModelError as error:
        raise ModelError(str(error).replace("model.name=", f"{key}=")) from error


def configure_model(session: Session, whisper: Whisper) -> None:
    """Sets how the model generates, and describes it in the results."""
    whisper.configure_generation(**session.config["generation"])
    session.results["model"] = {
        "name": model_name(session.config),
        "parameters": whisper.num_parameters,
        "window_s": whisper.processor.window_s,
        "window": describe_window(whisper.processor.window),
        "language": whisper.processor.language,
        "task": whisper.processor.task,
        **({"adapter": adapter_facts(whisper)} if whisper.adapter else {}),
        **({"notes": whisper.notes} if whisper.notes else {}),
    }
    rules, earlier = scoring_rules(session.results, whisper), session.results.get("scoring")
    if earlier and earlier | rules != earlier:  # resumed by another version
        log.info("from here on scored by %(normaliser)s and words by %(segmenter)s; earlier validations are not", rules)
    session.results["scoring"] = rules


def scoring_rules(results: Results, whisper: Whisper) -> dict[str, Any]:
    """The rules by which text is scored; of clips of several languages, each by those of its own."""
    processor, languages = whisper.processor, results["data"].get("languages", [])
    return text_rules(processor.text_language, [processor.of(code).text_language for code in languages])


def adapter_facts(whisper: Whisper) -> dict[str, Any]:
    """The kind of a model's adapter, the number of its layers, and of its weights, which alone are trained; and the
    bits of the base's weights, if they are not 32.
    """
    trained = sum(weight.numel() for weight in whisper.model.parameters() if weight.requires_grad)
    layers = len(whisper.arguments["adapter"]["modules"])
    facts = {"kind": whisper.arguments["adapter"]["kind"], "layers": layers, "parameters": trained}
    bits = whisper.arguments["adapter"]["base_bits"]
    return {**facts, "base_bits": bits} if bits else facts


def model_name(config: dict[str, Any]) -> str:
    """The model's name in tables: the last part of its Hub name or folder, or a checkpoint's run and file."""
    own = config.get("checkpoint") or next(iter(config.get("runs") or ()), None)
    if reference := parse_reference(own or config["model"].get("name") or ""):
        return reference.shown
    path = Path(own or config["model"].get("name", "micro")).resolve()
    if path.suffix == ".ckpt":
        return f"{path.parents[1].name}/{path.name}"
    return name_of_model(path)
