"""Checks the `hydra` node of a configuration right after it is composed, before Hydra acts on it, and finds secrets.

Before a command runs, Hydra instantiates launchers, sweepers and callbacks, sets up logging (whose configuration names
callables and files), sets environment variables and writes the configuration to files.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, get_type_hints

from hydra.conf import HydraConf
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kikitori.config import targets
from kikitori.config.names import did_you_mean
from kikitori.config.overrides import leaves
from kikitori.runtime.errors import ConfigError

# Exactly what Hydra's own logging configurations contain: `()`, `ext://` and classes are calls, a file name is a file
# that is written, and a format in braces reads any attribute. None: any plain value.
OUTPUTS = ("logging.StreamHandler", "logging.FileHandler")
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
FILES = ("${hydra.runtime.output_dir}/${hydra.job.name}.log", "hydra-${hydra.job.name}.log")
LOGGING: dict[str, dict[str, tuple[str, ...] | None]] = {
    "formatters": {"format": None, "datefmt": None, "style": ("%",)},
    "handlers": dict.fromkeys(("level", "formatter", "delay"))
    | {"class": OUTPUTS, "stream": STREAMS, "filename": FILES, "mode": ("a", "w")},
    "loggers": dict.fromkeys(("level", "handlers", "propagate")),
}
OF_ALL_LOGGING: dict[str, tuple[str, ...] | None] = dict.fromkeys(("version", "disable_existing_loggers"))
# Settings of a Slurm job that become lines of its script or words of its command.
SHELL = ("setup", "teardown", "srun_args", "additional_parameters", "python")
# Folders outside of a corpus in which its lists may name files.
ROOTS = "data.roots"
# `srun_args` of conf/hydra/launcher/slurm.yaml.
OURS = ["--kill-on-bad-exit=1"]
# Variables of the environment whose names contain one of these hold secrets, which must not be written to files or sent
# to servers.
SECRET_NAMES = ("TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL")
# Shorter values are switches rather than secrets, and would be found in any text.
SHORTEST_SECRET = 8


def secret_in(text: str) -> str | None:
    """The environment variable whose secret value a text contains; None if there is none."""
    return next((name for name, value in os.environ.items() if value in text and _is_secret(name, value)), None)


def secret_fault(text: str) -> str | None:
    """An error message if a text contains a secret value, None otherwise."""
    variable = secret_in(text)
    return f"holds the value of {variable}, and a configuration is written to files; leave it out" if variable else None


def _is_secret(name: str, value: str) -> bool:
    # A path, as in KEY_FILE, is not a secret.
    named = any(part in name.upper() for part in SECRET_NAMES)
    return named and len(value) >= SHORTEST_SECRET and not os.path.exists(value)


def check(cfg: DictConfig) -> None:
    """Raises ConfigError with all problems of Hydra's own node, and for secrets anywhere in the configuration."""
    found = [f"{key}: {fault}" for key, fault in _faults(cfg)]
    if found:
        count = f"{len(found)} problem{'s' * (len(found) > 1)}"
        raise ConfigError(f"{count} in the configuration\n" + "\n".join(f"  {line}" for line in found))


def _faults(cfg: DictConfig) -> Iterator[tuple[str, str]]:
    written: Any = OmegaConf.to_container(cfg)
    texts = [(key, f"{key} {value}") for key, value in leaves(written, into_lists=True)]
    # All at once first: searching each of 300 values for all variables takes longer.
    for key, text in texts if secret_in("\n".join(text for _, text in texts)) else []:
        if fault := secret_fault(text):
            yield "a key" if secret_in(key) else key, fault
    hydra = written["hydra"]
    # `env` is the node of a group of Hydra's that its schema lacks.
    yield from _unknown_keys({k: v for k, v in hydra.items() if k != "env"}, HydraConf, "hydra")
    if hydra["callbacks"]:
        yield "hydra.callbacks", "must be empty: Hydra callbacks can run any code, and kikitori does not use them"
    for key in ("env_set", "env_copy"):
        if hydra["job"][key]:
            yield f"hydra.job.{key}", "must be empty; set variables in the environment itself: NAME=value kikitori ..."
    for node in ("launcher", "sweeper"):
        yield from targets.faults(_resolved(cfg.hydra, node), f"hydra.{node}")
    yield from _shell_faults(_resolved(cfg.hydra, "launcher"), hydra["overrides"]["hydra"])
    for node in ("job_logging", "hydra_logging"):
        yield from _logging_faults(hydra[node], f"hydra.{node}")
    given = {override.lstrip("+").partition("=")[0] for override in hydra["overrides"]["task"]}
    for key, value in leaves(written):
        # Also as an axis of a sweep, which becomes the command line of its trials.
        if key.endswith(ROOTS) and value is not None and ROOTS not in given:
            yield key, "opens folders outside of the corpus, which no file may do; give it on the command line"


def _unknown_keys(node: Mapping[str, Any], schema: type, key: str) -> Iterator[tuple[str, str]]:
    """Reports keys that Hydra's own schema does not have, which a + adds."""
    hints = get_type_hints(schema)
    for name, value in node.items():
        if name not in hints:
            hint = did_you_mean(str(name), hints) or f"; there are {', '.join(hints)}"
            yield f"{key}.{name}", f"Hydra has no such key{hint}"
        elif is_dataclass(hints[name]) and isinstance(value, Mapping):
            yield from _unknown_keys(value, hints[name], f"{key}.{name}")


def _resolved(hydra: DictConfig, node: str) -> Any:
    if hydra[node] is None:
        return {}
    try:
        return OmegaConf.to_container(hydra[node], resolve=True)
    except OmegaConfBaseException:  # Hydra cannot instantiate it either, since it resolves the whole node first
        return OmegaConf.to_container(hydra[node])


def _shell_faults(launcher: Mapping[str, Any], line: list[str]) -> Iterator[tuple[str, str]]:
    """Reports settings that become commands in a Slurm job's script and are not on the command line."""
    given = {override.lstrip("+~").partition("=")[0] for override in line}
    for name, value in launcher.items():
        key = f"hydra.launcher.{name}"
        if name in SHELL and key not in given and value not in (None, [], {}, OURS):
            yield key, "runs commands, which a configuration file may not do; give it on the command line"
        if any("\n" in f"{part}{text}" for part, text in leaves(value, str(name), into_lists=True)):
            yield key, "must be one line; further lines would be commands in the job's script"


def _logging_faults(node: Any, key: str) -> Iterator[tuple[str, str]]:
    """Reports everything in a logging configuration that is not known to be harmless."""
    for name, value in _parts(node, key):
        if name in LOGGING:
            for part, settings in _parts(value, f"{key}.{name}"):
                yield from _setting_faults(settings, LOGGING[name], f"{key}.{name}.{part}")
        elif name == "root":
            yield from _setting_faults(value, LOGGING["loggers"], f"{key}.root")
        else:
            yield from _setting_faults({name: value}, OF_ALL_LOGGING, key)


def _setting_faults(node: Any, known: Mapping[str, tuple[str, ...] | None], key: str) -> Iterator[tuple[str, str]]:
    for name, value in _parts(node, key):
        choices, text = known.get(name), str(value)
        if name not in known:
            yield f"{key}.{name}", f"is not one of {', '.join(known)}; leave it out"
        elif choices and value not in choices:
            yield f"{key}.{name}", f"must be {' or '.join(choices)}, got {value!r}"
        elif not choices and ("://" in text or "${" in text):
            yield f"{key}.{name}", f"must be a plain value, got {value!r}"


def _parts(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, Mapping | None):
        raise ConfigError(f"{key}: must be a mapping, got {node!r}")
    yield from (node or {}).items()
