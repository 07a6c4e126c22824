"""Resuming a run: the command line of `resume=FOLDER`, and the changes that a resumed run may have."""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kikitori.config.composition import OF_RECORDS, reserved_settings
from kikitori.config.documentation import used_files
from kikitori.config.names import translate
from kikitori.config.overrides import (
    ALTERNATIVES,
    PATHS,
    chooses_configuration,
    config_folders,
    flatten,
    key_of,
    override,
    settings,
    split_words,
    value_of,
)
from kikitori.runs.results import RESULTS, SWEEP, Results, read_results, read_sweep
from kikitori.runtime.errors import ConfigError, DataError
from kikitori.runtime.paths import CONF

MULTIRUN = ("-m", "--multirun")
# Keys that belong to one start of a run and not to the run.
START_KEYS = ("resume", "resume_accept", "resume_sweep", "sweep", "hydra.run.dir")
# The same for a sweep, whose choice `sweep=` belongs to it.
SWEEP_START_KEYS = ("resume", "resume_accept", "resume_sweep", "hydra.sweep.dir")
# Keys whose default was another one in earlier versions, with the present one.
CHANGED_DEFAULTS = {"optim.warmup_steps": None, "data.full_window_share": 0.1}
# What a resumed run cannot change, with the reason: the best checkpoint by another score was not kept.
FIXED = {
    "callbacks.checkpoint.monitor": "checkpoints were chosen by it from the start",
    "optim._target_": "another optimizer cannot continue from its state",
    **dict.fromkeys(
        (f"adapter.{key}" for key in ("_target_", "kind", "rank", "initial_rank", "targets")),
        "the adapter in its checkpoints has the matrices of these settings",
    ),
}
# Keys in which a resumed run may differ without resume_accept.
NOT_OF_THE_RECIPE = re.compile(
    r"resume(_sweep)?|(resume_)?accept\b.*|sweep\b.*|logger\b.*|trainer\.(strategy\b.*|deterministic)"
    r"|callbacks\.pruning\b.*|keep|guard\b.*|.*\.(dirpath|verbose)|data\.(num_workers|eval_batch_size|micro_batch_size)"
)


def start_folder_of(words: Sequence[str]) -> Path | None:
    """The folder where the run or sweep was started that a command line resumes, to which its paths are relative."""
    for key, record, read in (("resume", RESULTS, read_results), ("resume_sweep", SWEEP, read_sweep)):
        folder = _named(key, split_words(words)[1])
        if folder and (folder / record).exists():
            start = read(folder).get("cwd")
            return Path(start) if start and Path(start).is_dir() else None
    return None


def typed_again(words: Iterable[str]) -> list[str]:
    """The overrides of a run or sweep that must be given once more when it is resumed."""
    return [
        word
        for word in words
        if key_of(word) not in (*START_KEYS, *SWEEP_START_KEYS) and any(reserved_settings([word], OF_RECORDS))
    ]


def _named(key: str, overrides: Iterable[str]) -> Path | None:
    """The folder that the last override of a key names; None if there is none."""
    values = [value_of(word) for word in overrides if key_of(word) == key]
    return Path(values[-1]) if values and values[-1] else None


def expand_resume(command: str, given: list[str]) -> list[str]:
    """Replaces `resume=FOLDER` by the overrides that the run in FOLDER was started with.

    Overrides given now take precedence, so that they are seen, and refused or accepted, as changes of the run.
    Raises ConfigError if the folder holds no run of this command, DataError if its results.json is damaged.
    """
    given_options, given_overrides = split_words(given)
    folder = _named("resume", given_overrides)
    if folder is None or str(folder) == "auto":
        return given
    if set(MULTIRUN) & set(given_options):
        raise ConfigError(f"resume={folder} resumes a single run; for a sweep use resume_sweep=<its folder>")
    if not (folder / RESULTS).exists():
        raise ConfigError(
            f"resume={folder} holds no run; give a run's folder, or resume=auto to start one in hydra.run.dir that can "
            "be resumed later"
        )
    results = read_results(folder)
    if results.get("command") != command:
        raise ConfigError(f"resume={folder} holds a run of kikitori {results.get('command')}, not of {command}")
    now = [word for word in given_overrides if key_of(word) != "resume"]
    # The record of a search's trial has its pruner; a run that is resumed by itself is not pruned.
    start_keys = (*START_KEYS, "callbacks.pruning")
    options, recorded = results.get("options", []), results.get("overrides", [])
    words = _recorded_words(folder / RESULTS, options, recorded, now, start_keys)
    if hydras := [key for word in words for key, _ in settings(word) if re.match(r"hydra\b", key)]:
        raise DataError(f"{folder / RESULTS} sets {hydras[0]}, which no run records; start again in another folder")
    return [
        *_kept(options, given_options),
        *given_options,
        *words,
        *now,
        override("hydra.run.dir", folder),
        "resume=auto",
    ]


def expand_resume_sweep(command: str, given: list[str]) -> list[str]:
    """Adds the words that the sweep in FOLDER was started with to a command line with `resume_sweep=FOLDER`.

    Overrides given now take precedence; `Sweep.add` refuses those that would change a trial.
    Raises ConfigError if it holds no sweep, or one of another command, DataError if sweep.json is damaged.
    """
    given_options, given_overrides = split_words(given)
    folder = _named("resume_sweep", given_overrides)
    if folder is None:
        return given
    if not (folder / SWEEP).exists():
        raise ConfigError(f"resume_sweep={folder} holds no {SWEEP}; give the folder of a sweep")
    command_line = read_sweep(folder).get("command")
    if command_line is None:
        raise DataError(f"{folder / SWEEP} holds no command; start a sweep in another folder")
    if command_line[1:2] not in ([], [command]):
        raise ConfigError(f"resume_sweep={folder} holds a sweep of kikitori {command_line[1]}, not of {command}")
    options, recorded = split_words(command_line[2:])
    words = _recorded_words(folder / SWEEP, options, recorded, given_overrides, SWEEP_START_KEYS, MULTIRUN)
    return [*_kept(options, given_options), *given_options, *words, *given_overrides]


def keep_changed_defaults(cfg: DictConfig, words: Iterable[str], folder: Path) -> None:
    """Gives a run of an earlier version that is resumed its recorded values, where defaults have changed since.

    words: the overrides of its command line, which take precedence. folder: of the run.
    """
    if cfg.get("resume") != "auto" or not (folder / RESULTS).exists():
        return
    recorded, given = dict(flatten(read_results(folder).get("config", {}))), set(map(key_of, words))
    for key, default in CHANGED_DEFAULTS.items():
        if recorded.get(key) is not None and key not in given and OmegaConf.select(cfg, key) == default:
            OmegaConf.update(cfg, key, recorded[key])


def changes(before: Mapping[str, Any], now: Mapping[str, Any], given: Iterable[str] = ()) -> dict[str, str]:
    """The keys in which two configurations differ, with both values; keys that may differ are left out.

    So is a key that this version has added to a node that both have, unless it is among the `given` ones.
    """
    old, new = (dict(flatten(json.loads(json.dumps(config)))) for config in (before, now))
    named = tuple(given)
    nodes = {key.rpartition(".")[0] for key in old}
    added = {k for k in new.keys() - old.keys() if k.rpartition(".")[0] in nodes and not k.startswith(named)}
    # null, of evaluate: as the model was trained. Records of early versions name both.
    as_trained = {key for key in ("model.language", "model.task") if new.get(key, "") is None}
    # A command line may name the same file relative to another folder.
    same = {key for key in PATHS if key in old and os.path.abspath(str(old[key])) == os.path.abspath(str(new.get(key)))}
    differing = [k for k in old | new if old.get(k) != new.get(k) and k not in added | as_trained | same]
    texts = {k: f"was {_as_written(old.get(k))}, is now {_as_written(new.get(k))}" for k in differing}
    return {k: text for k, text in texts.items() if not NOT_OF_THE_RECIPE.fullmatch(k)}


def _as_written(value: Any) -> Any:
    """A value as a command line has it: null, true."""
    return json.dumps(value) if value is None or isinstance(value, bool) else value


def check_extension(earlier: Results, config: Mapping[str, Any], folder: Path) -> int:
    """The steps of a completed training that is to be trained further.

    Raises ConfigError if it would take no further step: because it is not longer, or would stop early again.
    """
    done = earlier.get("checkpoint", {}).get("steps")
    if earlier["status"] != "completed" or done is None:
        raise ConfigError(
            f"hydra.run.dir={folder} holds a run that is {earlier['status']}: nothing is left to resume; "
            "start a new run in another folder"
        )
    try:
        clips = earlier["data"]["splits"]["train"]["clips"]
        before, now = (training_steps(settings, clips) for settings in (earlier["config"], config))
        was, patience = (_patience(settings) for settings in (earlier["config"], config))
    except (KeyError, TypeError) as missing:
        raise DataError(f"{folder / RESULTS} does not record its length ({missing}); start a new run") from missing
    if done >= now:
        key = "trainer.max_epochs" if config["trainer"].get("max_epochs") else "trainer.max_steps"
        raise ConfigError(
            f"{folder} holds a run that is completed, after {done} steps: nothing is left to resume; to train it "
            f"further: {key}=N 'resume_accept=[{key}]', for more steps than that"
        )
    if done < before and patience <= was:
        raise ConfigError(
            f"{folder} holds a run that stopped early, after {done} of {before} steps, and would stop again; raise "
            "callbacks.early_stopping.patience, or choose callbacks=best_checkpoint, with 'resume_accept=[callbacks]'"
        )
    return int(done)


def training_steps(config: Mapping[str, Any], clips: int) -> int:
    """Optimizer steps of a training on so many clips, configured in steps or in epochs, also by an earlier version."""
    trainer = config["trainer"]
    per_epoch = -(-clips // dict(flatten(config))["data.global_batch_size"])
    return int(trainer["max_steps"] or trainer["max_epochs"] * per_epoch)


def _patience(config: Mapping[str, Any]) -> float:
    """Of early stopping; without limit if there is none."""
    return min((node["patience"] for node in config["callbacks"].values() if "patience" in node), default=math.inf)


def check_data(results: Results, summary: Mapping[str, Any], accepted: Sequence[str], folder: Path) -> None:
    """Raises ConfigError if a resumed run finds other clips than it began with."""
    before = results.get("data", {})
    found = {}
    for part, what, unit in (
        ("splits", "audio, transcripts or languages", "clips"),
        ("augmentation", "recordings", "recordings"),
    ):
        for name, facts in summary.get(part, {}).items():
            earlier = before.get(part, {}).get(name, facts)
            if earlier["digest"] != facts["digest"]:
                counts = f"{earlier[unit]} {unit} then, {facts[unit]} now"
                found[f"data ({name})"] = f"{what} have changed: {counts}"
    refuse_changes(found, accepted, folder)


def refuse_changes(found: Mapping[str, str], accepted: Sequence[str], folder: Path) -> None:
    """Raises ConfigError for changes that `resume_accept` does not name; a key there covers the keys below it."""
    for key in filter(found.__contains__, FIXED):
        raise ConfigError(f"{key}: {found[key]}; a resumed run keeps it: {FIXED[key]}")
    refused = {k: how for k, how in found.items() if not any(re.match(rf"{re.escape(a)}\b", k) for a in accepted)}
    if refused:
        lines = "\n".join(f"  {key}: {how}" for key, how in refused.items())
        keys = ",".join(dict.fromkeys([*accepted, *(key.partition(" ")[0] for key in refused)]))
        raise ConfigError(
            f"{folder} holds a run with other settings; resume it unchanged, or accept the changes with "
            f"'resume_accept=[{keys}]'\n{lines}"
        )


def _left_out(words: Iterable[str]) -> set[str]:
    """The entries of callbacks and logger that the choices in `words` lack, such as callbacks.early_stopping."""
    choices = {key_of(word): str(value_of(word)).strip("[]").split(",") for word in words if "=" in word}
    found: set[str] = set()
    for group in ("callbacks", "logger"):
        entries = {path.stem: _entries(group, path.stem) for path in (CONF / group).glob("*.yaml")}
        if group in choices and set(choices[group]) <= entries.keys():
            found |= set().union(*entries.values()) - set().union(*(entries[name] for name in choices[group]))
    return found


def _entries(group: str, choice: str) -> set[str]:
    files = used_files([CONF], f"{group}/{choice}", {})
    return {f"{group}.{key.partition('.')[0]}" for file in files.values() for key in file.keys}


def _kept(options: Sequence[str], given: Sequence[str]) -> list[str]:
    """The recorded options that are not given now; of those that choose a configuration none, if one is chosen now."""
    if chooses_configuration(given):
        options = [word for word in options if word in MULTIRUN]
    return [word for word in options if word not in given]


def _recorded_words(
    path: Path,
    options: Sequence[str],
    overrides: Sequence[str],
    now: Sequence[str],
    start_keys: Sequence[str],
    others: Sequence[str] = (),
) -> list[str]:
    """The recorded overrides that do not give way to those given `now`, with the names of this version.

    start_keys: what belonged to an earlier start only. others: the options that may be recorded besides those that
    choose a configuration. Raises DataError for other options, and ConfigError for overrides that only a person may
    type: who wrote the record is not known.
    """
    remaining = iter(options)
    for word in remaining:
        value = "" if "=" in word or word in others else next(remaining, "-")
        if value.startswith("-") or not (word in others or chooses_configuration([word])):
            raise DataError(f"{path} holds the option {word}, which is not taken over; start again in another folder")
    if options_among := split_words(overrides)[0]:
        raise DataError(f"{path} has the option {options_among[0]} among its overrides; start again in another folder")
    own = config_folders([*options, *overrides])
    words = [translate(word, own) for word in overrides]
    given = set(map(key_of, now))
    alternatives = {other for pair in ALTERNATIVES for key, other in (pair, pair[::-1]) if key in given}
    left_out = tuple(f"{entry}." for entry in _left_out(now))
    taken = {*given, *alternatives, *start_keys}
    words = [word for word in words if key_of(word) not in taken and not key_of(word).startswith(left_out)]
    for key, fault in reserved_settings(words, OF_RECORDS):
        raise ConfigError(f"{path} sets {key}: {fault}")
    return words
