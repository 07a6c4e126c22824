"""`resume=FOLDER`: the command line that goes on with the run of a folder."""

from pathlib import Path

from kikitori.errors import ConfigError
from kikitori.paths import override
from kikitori.report import read_json

# What belongs to one start of a run, not to the run.
OF_A_START = ("resume", "accept", "sweep", "hydra.run.dir")


def expanded(command: str, given: list[str]) -> list[str]:
    """The words after the command's name, with `resume=FOLDER` replaced by what the run there was started with.

    What is given now wins over that, so that a change can be seen, and refused or accepted, as a change of the run.
    Raises ConfigError where the folder holds no run of this command, DataError where its record is damaged.
    """
    values = [word.partition("=")[2].strip("'\"") for word in given if word.startswith("resume=")]
    if not values or values[-1] in ("", "auto", "null"):
        return given
    folder = Path(values[-1])
    if {"-m", "--multirun"} & set(given):
        raise ConfigError(f"resume={folder} goes on with one run; a sweep goes on with sweep.resume=<its folder>")
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
