"""`resume=FOLDER`: the command line that goes on with the run of a folder."""

import json
import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from kikitori.config.overrides import flatten, override
from kikitori.runs.results import Results
from kikitori.runtime.errors import ConfigError
from kikitori.runtime.files import read_json

# What belongs to one start of a run, not to the run.
OF_A_START = ("resume", "resume_accept", "resume_sweep", "sweep", "hydra.run.dir")


def expand_resume(command: str, given: list[str]) -> list[str]:
    """The words after the command's name, with `resume=FOLDER` replaced by what the run there was started with.

    What is given now wins over that, so that a change can be seen, and refused or accepted, as a change of the run.
    Raises ConfigError where the folder holds no run of this command, DataError where its record is damaged.
    """
    values = [word.partition("=")[2].strip("'\"") for word in given if word.startswith("resume=")]
    if not values or values[-1] in ("", "auto", "null"):
        return given
    folder = Path(values[-1])
    if {"-m", "--multirun"} & set(given):
        raise ConfigError(f"resume={folder} goes on with one run; a sweep goes on with resume_sweep=<its folder>")
    if not (folder / "results.json").exists():
        raise ConfigError(
            f"resume={folder} holds no run to go on with; give a run's folder, or auto to begin one in hydra.run.dir "
            "and go on with it later"
        )
    facts = read_json(folder / "results.json")
    if facts.get("command") != command:
        raise ConfigError(f"resume={folder} holds a run of kikitori {facts.get('command')}, not of {command}")
    now = [word for word in given if _key(word) != "resume"]
    known = {_key(word) for word in now} | set(OF_A_START)
    own = [word for word in map(str, facts.get("overrides", [])) if _key(word) not in known]
    # --config-dir and its like, where the run was started with them and now is not.
    options = [] if any(word.startswith("--config-") for word in now) else facts.get("options", [])
    return [*map(str, options), *own, *now, override("hydra.run.dir", folder), "resume=auto"]


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


# What a run may be resumed with anew.
NOT_OF_THE_RECIPE = re.compile(
    r"resume(_sweep)?|(resume_)?accept\b.*|sweep\b.*|logger\b.*|trainer\.strategy\b.*"
    r"|callbacks\.pruning\b.*|.*\.dirpath|data\.(num_workers|eval_batch_size|micro_batch_size|batch)"
)


def changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """Keys of the recipe in which two configurations differ, with the values; where things are written is none."""
    old, new = (dict(flatten(json.loads(json.dumps(config)))) for config in (before, now))
    differing = [key for key in old | new if old.get(key) != new.get(key) and not NOT_OF_THE_RECIPE.fullmatch(key)]
    return {key: f"was {old.get(key)}, is now {new.get(key)}" for key in differing}


def check_data(results: Results, summary: dict[str, Any], cfg: DictConfig, folder: Path) -> None:
    """Raise ConfigError where a run that goes on finds other clips than it began with."""
    before = results.get("data", {}).get("splits", {})
    told = {}
    for split, facts in summary["splits"].items():
        if split in before and before[split]["digest"] != facts["digest"]:
            what = f"{before[split]['clips']} clips then, {facts['clips']} now"
            told[f"data ({split})"] = f"audio or transcripts have changed: {what}"
    _refuse_changes(told, cfg, folder)


def _refuse_changes(told: dict[str, str], cfg: DictConfig, folder: Path) -> None:
    accepted = tuple(cfg.get("resume_accept") or [])
    refused = {key: how for key, how in told.items() if not any(re.match(rf"{re.escape(a)}\b", key) for a in accepted)}
    if refused:
        lines = "\n".join(f"  {key}: {how}" for key, how in refused.items())
        keys = ",".join(dict.fromkeys(key.partition(" ")[0] for key in refused))
        raise ConfigError(
            f"{folder} holds a run that is not this one; resume it as it was, or take the changes over with "
            f"'resume_accept=[{keys}]'\n{lines}"
        )
