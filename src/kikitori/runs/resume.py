"""Resuming a run: the command line of `resume=FOLDER`, and the changes that a resumed run may have."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kikitori.config.names import translate
from kikitori.config.overrides import chooses_configuration, config_folders, flatten, override, split_words
from kikitori.runs.results import RESULTS, SWEEP, Results
from kikitori.runtime.errors import ConfigError, DataError
from kikitori.runtime.files import read_json

# Keys that belong to one start of a run and not to the run.
START_KEYS = ("resume", "resume_accept", "resume_sweep", "sweep", "hydra.run.dir")
# The same for a sweep, whose choice `sweep=` belongs to it.
SWEEP_START_KEYS = ("resume", "resume_accept", "resume_sweep", "hydra.sweep.dir")
# Keys in which a resumed run may differ without resume_accept.
NOT_OF_THE_RECIPE = re.compile(
    r"resume(_sweep)?|(resume_)?accept\b.*|sweep\b.*|logger\b.*|trainer\.strategy\b.*"
    r"|callbacks\.pruning\b.*|keep|.*\.dirpath|data\.(num_workers|eval_batch_size|micro_batch_size)"
)


def expand_resume(command: str, given: list[str]) -> list[str]:
    """Replaces `resume=FOLDER` by the overrides that the run in FOLDER was started with.

    Overrides given now take precedence, so that they are seen, and refused or accepted, as changes of the run.
    Raises ConfigError if the folder holds no run of this command, DataError if its results.json is damaged.
    """
    given_options, given_overrides = split_words(given)
    values = [word.partition("=")[2].strip("'\"") for word in given_overrides if word.startswith("resume=")]
    if not values or values[-1] in ("", "auto", "null"):
        return given
    folder = Path(values[-1])
    if {"-m", "--multirun"} & set(given_options):
        raise ConfigError(f"resume={folder} resumes a single run; for a sweep use resume_sweep=<its folder>")
    if not (folder / RESULTS).exists():
        raise ConfigError(
            f"resume={folder} holds no run; give a run's folder, or resume=auto to start one in hydra.run.dir that can "
            "be resumed later"
        )
    results = read_json(folder / RESULTS)
    if results.get("command") != command:
        raise ConfigError(f"resume={folder} holds a run of kikitori {results.get('command')}, not of {command}")
    now = [word for word in given_overrides if _key(word) != "resume"]
    taken = {_key(word) for word in now} | set(START_KEYS)
    options, overrides = ([str(word) for word in results.get(name, [])] for name in ("options", "overrides"))
    recorded = [word for word in _translated(options, overrides) if _key(word) not in taken]
    options = _kept(options, given_options)
    return [*options, *given_options, *recorded, *now, override("hydra.run.dir", folder), "resume=auto"]


def expand_resume_sweep(command: str, given: list[str]) -> list[str]:
    """Adds the words that the sweep in FOLDER was started with to a command line with `resume_sweep=FOLDER`.

    Overrides given now take precedence; `Sweep.add` refuses those that would change a trial. A folder without a sweep
    leaves the line unchanged. Raises ConfigError if its sweep is one of another command, DataError if sweep.json is
    damaged.
    """
    given_options, given_overrides = split_words(given)
    values = [word.partition("=")[2].strip("'\"") for word in given_overrides if word.startswith("resume_sweep=")]
    folder = Path(values[-1]) if values else None
    if folder is None or values[-1] in ("", "null") or not (folder / SWEEP).exists():
        return given
    recorded = read_json(folder / SWEEP).get("command")
    if not isinstance(recorded, list) or not all(isinstance(word, str) for word in recorded):
        raise DataError(f"{folder / SWEEP} holds no command; start a sweep in another folder")
    if recorded[1:2] not in ([], [command]):
        raise ConfigError(f"resume_sweep={folder} holds a sweep of kikitori {recorded[1]}, not of {command}")
    taken = {_key(word) for word in given_overrides} | set(SWEEP_START_KEYS)
    options, overrides = split_words(recorded[2:])
    words = [word for word in _translated(options, overrides) if _key(word) not in taken]
    return [*_kept(options, given_options), *given_options, *words, *given_overrides]


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """The keys in which two configurations differ, with both values; keys that may differ are left out."""
    old, new = (dict(flatten(json.loads(json.dumps(config)))) for config in (before, now))
    # null, of evaluate: as the model was trained. Records of early versions name both.
    as_trained = {key for key in ("model.language", "model.task") if new.get(key, "") is None}
    differing = [key for key in old | new if old.get(key) != new.get(key) and not NOT_OF_THE_RECIPE.fullmatch(key)]
    differing = [key for key in differing if key not in as_trained]
    return {key: f"was {old.get(key)}, is now {new.get(key)}" for key in differing}


def check_data(results: Results, summary: Mapping[str, Any], accepted: Sequence[str], folder: Path) -> None:
    """Raises ConfigError if a resumed run finds other clips than it began with."""
    before = results.get("data", {}).get("splits", {})
    found = {}
    for split, facts in summary["splits"].items():
        if split in before and before[split]["digest"] != facts["digest"]:
            counts = f"{before[split]['clips']} clips then, {facts['clips']} now"
            found[f"data ({split})"] = f"audio or transcripts have changed: {counts}"
    refuse_changes(found, accepted, folder)


def refuse_changes(found: Mapping[str, str], accepted: Sequence[str], folder: Path) -> None:
    """Raises ConfigError for changes that `resume_accept` does not name; a key there covers the keys below it."""
    refused = {k: how for k, how in found.items() if not any(re.match(rf"{re.escape(a)}\b", k) for a in accepted)}
    if refused:
        lines = "\n".join(f"  {key}: {how}" for key, how in refused.items())
        keys = ",".join(dict.fromkeys(key.partition(" ")[0] for key in refused))
        raise ConfigError(
            f"{folder} holds a run with other settings; resume it unchanged, or accept the changes with "
            f"'resume_accept=[{keys}]'\n{lines}"
        )


def _kept(options: Sequence[str], given: Sequence[str]) -> list[str]:
    """The recorded options that are not given now; of those that choose a configuration none, if one is chosen now."""
    if chooses_configuration(given):
        options = [word for word in options if word in ("-m", "--multirun")]
    return [word for word in options if word not in given]


def _translated(options: Sequence[str], overrides: Sequence[str]) -> list[str]:
    own = config_folders([*options, *overrides])
    return [translate(word, own) for word in overrides]


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]
