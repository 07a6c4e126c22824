"""What a composed configuration may hold: checked once, before Hydra acts on it or writes it to a file.

Before a command runs, Hydra builds a launcher and a sweeper, sets up logging (whose configuration names callables and
files), sets environment variables and makes folders. Two tables: HYDRA for everybody, RESERVED for what is not typed.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from hydra.core.utils import JobRuntime
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kikitori.config import targets
from kikitori.config.arguments import Rule, one_of
from kikitori.config.names import did_you_mean
from kikitori.config.overrides import is_readable, leaves, settings, to_plain
from kikitori.runtime.errors import one_line, raise_problems
from kikitori.runtime.text import secret_fault

Path = tuple[str, ...]

ANY = Rule(lambda value: True, "")
PLAIN = Rule(lambda value: not re.search(r"\$\{|://", str(value)), "must be a plain value")
NAME = Rule(lambda value: re.fullmatch(r"[\w.+-]*[\w+-]", str(value)) is not None, "must be a plain name")
NO_CALLBACKS = Rule(lambda value: not value, "must be empty: Hydra callbacks can run any code; kikitori has none")
NO_VARIABLES = Rule(lambda value: value == [], "must be empty; set variables in the environment: NAME=... kikitori")
# Where Hydra's own choices of logging write: a format in braces would read any attribute, a class be called.
LOG_FILES = ("${hydra.runtime.output_dir}/${hydra.job.name}.log", "hydra-${hydra.job.name}.log")
LOGGING = {
    **dict.fromkeys(("version", "disable_existing_loggers"), PLAIN),
    **dict.fromkeys(("formatters.*.format", "formatters.*.datefmt"), PLAIN),
    "formatters.*.style": one_of("%"),
    **dict.fromkeys(("handlers.*.level", "handlers.*.formatter", "handlers.*.delay"), PLAIN),
    "handlers.*.class": one_of("logging.StreamHandler", "logging.FileHandler"),
    "handlers.*.stream": one_of("ext://sys.stdout", "ext://sys.stderr"),
    "handlers.*.filename": one_of(*LOG_FILES),
    "handlers.*.mode": one_of("a", "w"),
    "root": one_of(None),
    **dict.fromkeys(("root.level", "root.handlers", "root.propagate"), PLAIN),
    **dict.fromkeys(("loggers.*.level", "loggers.*.handlers", "loggers.*.propagate"), PLAIN),
}
# The keys of Hydra's node. `env` is that of a group of Hydra's; launcher and sweeper have tables of their own.
HYDRA: dict[str, Rule] = {
    **{f"{node}.{key}": rule for node in ("job_logging", "hydra_logging") for key, rule in LOGGING.items()},
    **dict.fromkeys(("mode", "searchpath", "verbose", "run.dir", "sweep.dir", "sweep.subdir", "env"), ANY),
    **dict.fromkeys(("help.**", "hydra_help.**", "overrides.*", "launcher.**", "sweeper.**"), ANY),
    **dict.fromkeys((f"job.{key}" for key in ("chdir", "id", "num", "config_name", "override_dirname")), ANY),
    **dict.fromkeys(("job.config.**", "runtime.choices.**"), ANY),
    **dict.fromkeys((f"runtime.{key}" for key in ("version", "version_base", "cwd", "config_sources")), ANY),
    "runtime.output_dir": Rule(lambda value: value == "???", "must not be set: Hydra writes it when a run starts"),
    "job.name": NAME,
    "output_subdir": Rule(lambda value: value is None or NAME.accepts(value), "must be a plain name or null"),
    "job.env_set.*": NO_VARIABLES,
    "job.env_copy": NO_VARIABLES,
    "callbacks.**": NO_CALLBACKS,
}

# `srun_args` of conf/hydra/launcher/slurm.yaml, and the folders of trials in conf/base.yaml and of Hydra itself.
SRUN = ["--kill-on-bad-exit=1"]
TRIALS = ("${hydra:job.num}-${kikitori.swept:${hydra:overrides.task}}", "${hydra.job.num}")
# In the path of a folder that a file names: what these stand for leads nowhere else. Of the time only what is never
# empty, since two dots with nothing between them would lead out.
INSIDE = re.compile(
    r"\$\{hydra[:.](sweep\.dir|runtime\.output_dir|job\.name)\}|\$\{now:((?:%[YymdHIMSfjbBaAUW]|[^${}%])*)\}"
)
TYPE_IT = "give it on the command line"


def _stays_inside(value: Any) -> bool:
    path = INSIDE.sub(lambda found: found[2] or "x", "" if value is None else str(value))
    return not re.search(r"^[/~]|\$\{|://|::|(^|/)\.\.(/|$)", path)


def _stays_in_the_run(value: Any) -> bool:
    in_the_run = re.match(r"\$\{hydra[:.](runtime\.output_dir|sweep\.dir)\}", str(value))
    return not value or (in_the_run is not None and _stays_inside(value))


UNSET = Rule(lambda value: value in (None, [], "???"), f"resumes what is in a folder; {TYPE_IT}")
ROOTS = Rule(lambda value: value is None, f"opens folders outside of the corpus, which no file may do; {TYPE_IT}")
COMMANDS = Rule(
    lambda value: value in (None, [], SRUN), f"runs commands, which a configuration file may not do; {TYPE_IT}"
)
FOLDER = Rule(_stays_inside, f"must be a folder below the working folder where a file names it; or {TYPE_IT}")
# What a file may not set, or not to every value: each key is obeyed only from the command line.
RESERVED: dict[str, Rule] = {
    "data.roots": ROOTS,
    **dict.fromkeys(("resume", "resume_accept", "resume_sweep"), UNSET),
    **{
        f"hydra.launcher.{key}.**": COMMANDS
        for key in ("setup", "teardown", "srun_args", "additional_parameters", "python")
    },
    "hydra.sweep.subdir": Rule(lambda value: value in TRIALS, f"names the folders of trials; {TYPE_IT}"),
    # With these two a file could choose the names of files that are overwritten.
    "hydra.output_subdir": Rule(lambda value: value in (".hydra", None), f"names a folder; {TYPE_IT}"),
    "hydra.job.name": Rule(lambda value: value == JobRuntime.instance().get("name"), f"names the log; {TYPE_IT}"),
    **dict.fromkeys(("hydra.run.dir", "hydra.sweep.dir", "hydra.sweeper.study"), FOLDER),
    **dict.fromkeys(("hydra.launcher.submitit_folder", "logger.*.save_dir", "logger.*.folder"), FOLDER),
    **dict.fromkeys(("callbacks.*.dirpath", "callbacks.*.study"), FOLDER),
}
# The same when a run or sweep is resumed: its record decides the working folder, too, and which files are read.
IN_THE_RUN = Rule(_stays_in_the_run, f"must be a folder of the run that is resumed; or {TYPE_IT}")
OF_RECORDS = {
    key: IN_THE_RUN if rule is FOLDER and key not in ("hydra.run.dir", "hydra.sweep.dir") else rule
    for key, rule in RESERVED.items()
}


def check(cfg: DictConfig, words: Sequence[str]) -> None:
    """Raises ConfigError with all that a configuration must not hold.

    words: the overrides it was composed with, which a person typed, or which set nothing of `reserved_settings`.
    """
    raise_problems([f"{key}: {fault}" for key, fault in _faults(cfg, words)])


def _faults(cfg: DictConfig, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    written: Any = OmegaConf.to_container(cfg)
    texts = [(key, f"{key} {value}") for key, value in leaves(written, into_lists=True)]
    # All at once first: searching each of 300 values for all variables takes longer.
    for key, text in texts if secret_fault("\n".join(text for _, text in texts)) else []:
        if fault := secret_fault(text):
            yield "a key" if secret_fault(key) else key, fault
    hydra = written["hydra"]
    recorded = hydra["overrides"] if isinstance(hydra["overrides"], Mapping) else {}
    if sorted(str(word) for part in recorded.values() for word in part) != sorted(words):
        yield "hydra.overrides", "must not be set: Hydra writes the command line there; leave it out"
    for path, value in _paths(hydra):
        rule = _rule(path, HYDRA)
        if rule is None or not rule.accepts(value):
            yield ".".join(("hydra", *path)), rule.fault(value) if rule else _unknown(path)
    given = {key for word in words for key, _ in settings(word)}
    table = OF_RECORDS if {"resume", "resume_sweep"} & given else RESERVED
    for path, value in _paths(written):
        if ".".join(path) not in given and (fault := _reserved(path, value, table)):
            yield ".".join(path), fault
    for node in ("launcher", "sweeper"):
        try:
            built = to_plain(cfg.hydra[node])
        except OmegaConfBaseException as error:
            # What they refer to may be missing; they are built for a sweep only.
            if cfg.hydra.mode is RunMode.MULTIRUN:
                yield str(error.full_key), one_line(error)
            continue
        if not isinstance(built, Mapping) and (built is not None or cfg.hydra.mode is RunMode.MULTIRUN):
            yield f"hydra.{node}", f"must be a mapping with a _target_, got {built!r}"
            continue
        yield from targets.faults(built, f"hydra.{node}")
        # The axes of a sweep become words on the command lines of its trials.
        params = (built or {}).get("params")
        axes = [f"{key}={value}" for key, value in (params if isinstance(params, Mapping) else {}).items()]
        yield from (
            (f"hydra.{node}.params.{key}", fault) for key, fault in reserved_settings(axes, table) if key not in given
        )
        yield from (
            ("a key of hydra.sweeper.params", f"{axis[:80]} cannot be read") for axis in axes if not is_readable(axis)
        )


def reserved_settings(words: Iterable[str], table: Mapping[str, Rule] = RESERVED) -> Iterator[tuple[str, str]]:
    """Yields (key, fault) for what overrides set although only a person may type it. table: RESERVED or OF_RECORDS."""
    for word in words:
        for key, value in settings(word):
            if fault := _reserved(tuple(key.split(".")), value, table):
                yield key, fault


def _reserved(path: Path, value: Any, table: Mapping[str, Rule]) -> str | None:
    if rule := _rule(path, table):
        return None if rule.accepts(value) else rule.fault(value)
    is_interpolation = isinstance(value, str) and "${" in value
    if is_interpolation and any(_matches(path, _names(pattern)[: len(path)]) for pattern in RESERVED):
        return f"must be written out, got {value!r}: some of its keys may be set on the command line only"
    return None


def _paths(node: Any, at: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yields the names that lead to each value that is no mapping, and the value."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _paths(value, (*at, str(name)))
    else:
        yield at, node


def _rule(path: Path, table: Mapping[str, Rule]) -> Rule | None:
    """The rule of a path; * stands for any name, ** at the end for any names, or none."""
    for pattern, rule in table.items():
        names = _names(pattern)
        rest = path[len(names) - 1 :] if names[-1] == "**" else names[-1:]
        if names[0] == path[0] and _matches(path, (*names[:-1], *rest)):
            return rule
    return None


@cache
def _names(pattern: str) -> Path:
    return tuple(pattern.split("."))


def _matches(path: Path, names: Sequence[str]) -> bool:
    return len(path) == len(names) and all(name in ("*", part) for name, part in zip(names, path, strict=True))


def _unknown(path: Path) -> str:
    known = dict.fromkeys(pattern.partition(".")[0] for pattern in HYDRA)
    hint = did_you_mean(path[0], known) or f"; there are {', '.join(known)}"
    return f"Hydra has no such key{hint}" if path[0] not in known else "is not supported; leave it out"
