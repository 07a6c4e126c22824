"""Overrides of the command line, resolvers of the configuration, and its plain values."""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kikitori.config import names
from kikitori.config.documentation import help_text
from kikitori.references.names import is_reference
from kikitori.runtime.errors import ConfigError
from kikitori.runtime.paths import CONF

LONGEST_NAME = 180
# The environment variable that holds the arguments of the command line, as JSON.
LINE = "KIKITORI_LINE"
# Hydra's options that choose configuration files, and those whose value is a folder.
CONFIG_FOLDER = ("--config-dir", "-cd", "--config-path", "-cp")
CONFIG = (*CONFIG_FOLDER, "--config-name", "-cn")
# All that take a value.
WITH_VALUE = (*CONFIG, "--cfg", "-c", "--package", "-p", "--info", "-i", "--experimental-rerun")
# Keys whose value is a file or folder, and those that take a name on the Hugging Face Hub as well.
FILES = ("data.release", "data.manifest", "checkpoint", "augment.noise_folder", "augment.room_folder")
PATHS = (*FILES, "data.name", "model.name", "hydra.run.dir", "hydra.sweep.dir", "resume", "resume_sweep")
# A part of a list or mapping, and of a call: a quoted text, or one without quotes and brackets.
QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|"""
PART = re.compile(QUOTED + r"""[^][{},'"]+""", re.DOTALL)
PART_OF_CALL = re.compile(QUOTED + r"""[^][{}(),'"]+""", re.DOTALL)
# Groups that change nothing unless one of these keys is set: a run of a version without them is the same.
SWITCHES = {"augment": re.compile(".*_prob"), "joining": re.compile("share|non_speech")}
# Keys of lists, of which one value needs no brackets.
LISTS = ("splits", "to", "quantize")
# Two ways to say the same thing: of each pair, one is set and the other null.
ALTERNATIVES = (("trainer.max_steps", "trainer.max_epochs"), ("validation.every_steps", "validation.every_epochs"))


def split_words(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """Options with their values, and overrides."""
    options: list[str] = []
    overrides: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if word.startswith("-"):
            options += [word, *islice(remaining, int("=" not in word and _is_option(word, WITH_VALUE)))]
        else:
            overrides.append(word)
    return options, overrides


def chooses_configuration(options: Iterable[str]) -> bool:
    """Whether one of the options is --config-dir, --config-path or --config-name."""
    return any(_is_option(word, CONFIG) for word in options)


def config_folders(words: Sequence[str]) -> list[Path]:
    """The user's own configuration folders that a command line names."""
    options, overrides = split_words(words)
    found: list[str] = []
    for word, following in pairwise([*options, ""]):
        if _is_option(word, CONFIG_FOLDER):
            _, equals, value = word.partition("=")
            found.append(value if equals else following)
    for word in overrides:
        if word.startswith("hydra.searchpath="):
            found += re.findall(r"file://([^,\]'\"]+)", word)
    return list(map(Path, found))


def _is_option(word: str, options: Sequence[str]) -> bool:
    """Whether a word is one of the options; argparse accepts abbreviated long ones."""
    name = word.partition("=")[0]
    return name in options or (len(name) > 2 and name[:2] == "--" and any(o.startswith(name) for o in options))


def swept_values(overrides: Sequence[str]) -> dict[str, str]:
    """The overrides of a job that its sweep varies, on the command line or in `hydra.sweeper.params`."""
    # A Slurm job finds the sweep's command line in its environment only.
    line = json.loads(os.environ[LINE]) if LINE in os.environ else sys.argv[1:]
    given = OverridesParser.create().parse_overrides([word for word in split_words(line)[1] if "=" in word])
    keys = {override.get_key_element() for override in given if override.is_sweep_override()}
    keys |= set(OmegaConf.select(HydraConfig.get(), "sweeper.params") or {}) if HydraConfig.initialized() else set()
    pairs = [override.partition("=") for override in overrides]
    return {key: value for key, _, value in pairs if key in keys}


def short_number(value: str) -> str:
    """A value with at most four significant digits where it is a fraction with many, as a search draws it."""
    try:
        number = float(value)
    except ValueError:
        return value
    return f"{number:.4g}" if len(value) > 8 and not number.is_integer() else value


def overrides() -> list[str]:
    """The overrides of this run; with the command's name they are enough to repeat it."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def quote_value(word: str) -> str:
    """Quotes the value of an override where Hydra's grammar has no other reading of it: 録音/a.csv, rec (1)/a.csv, a=b.

    Lists, mappings and sweeps keep their syntax; their parts are quoted. A value that is the name of an existing file,
    for a key that names one, is quoted whatever the grammar makes of it.
    """
    key, equals, value = word.partition("=")
    if not equals:
        return word
    read = _parse(word)
    if key.lstrip("+") in PATHS and value and os.path.lexists(value):
        return override(key, value)
    if read is not None:
        # Hydra strips white space; a backslash is its own escape.
        literal = read.is_sweep_override() or not isinstance(read.value(), str) or re.search(r"[\\'\"]", value)
        return word if literal or read.value() == value else override(key, value)
    parts = [_quote_parts(value)] if re.search("[][{}(),]", value) else []
    for text in (*parts, ",".join(_quote_unless_read(part) for part in names.split(value))):
        if _parse(f"{key}={text}") is not None:
            return f"{key}={text}"
    quoted = override(key, value)
    return quoted if _parse(quoted) is not None else word


def is_readable(word: str) -> bool:
    """Whether Hydra's grammar can read an override."""
    return _parse(word) is not None


def names_choices(word: str) -> bool:
    """Whether an override of a group names choices, or sets keys by a mapping; null and numbers do neither."""
    read = _parse(word)
    return read is None or read.is_sweep_override() or isinstance(read.value(), str | list | dict)


def _parse(word: str) -> Override | None:
    """An override as Hydra reads it; None if it cannot."""
    try:
        read = OverridesParser.create().parse_override(word)
    except (HydraException, ValueError):  # a number may have too many digits
        return None
    return read


def _quote_unless_read(text: str) -> str:
    return text if _parse(f"x={text}") is not None else quote(text)


def _quote_parts(value: str) -> str:
    """Quotes what Hydra cannot read of a list, mapping or call, such as {train: 録音/a.csv, test: b (2).csv}."""

    def quoted(found: re.Match[str]) -> str:
        name, text = re.fullmatch(r"(\s*(?:[\w.]+:)?\s*)(.*?)\s*", found[0], re.DOTALL).groups()  # type: ignore[union-attr]
        return name + _quote_unless_read(text) if text and text[0] not in "'\"" else found[0]

    return re.sub(PART if value.startswith(("[", "{")) else PART_OF_CALL, quoted, value)


def quote(value: object) -> str:
    """A text as Hydra's grammar quotes it. Backslashes count only before a quote, and ${ would be an interpolation."""
    text = re.sub(r"(\\*)'", r"\1\1\\'", str(value).replace("${", "\\${"))
    return "'" + re.sub(r"(\\+)$", r"\1\1", text) + "'"


def override(key: str, value: object) -> str:
    """An override with a text as its value, quoted unless Hydra's grammar reads it as it is."""
    word = f"{key}={value}"
    read = _parse(word)
    is_text = read is not None and not read.is_sweep_override() and read.value() == str(value)
    return word if is_text and "${" not in word else f"{key}={quote(value)}"


def key_of(word: str) -> str:
    """The key of an override."""
    return word.lstrip("+~").partition("=")[0]


def value_of(word: str) -> str | None:
    """The text of an override's value, without its quotes; None for null."""
    value = read.value() if (read := _parse(word)) else ""
    return value if value is None or (isinstance(value, str) and value) else word.partition("=")[2]


def absolute_paths(words: Iterable[str]) -> list[str]:
    """Overrides with the files and folders that they name as absolute paths; names on the Hub stay."""
    return [_absolute_path(word) for word in words]


def _absolute_path(word: str) -> str:
    key, value = word.partition("=")[0], value_of(word)
    if key not in PATHS or not value or is_reference(value):
        return word
    read = _parse(word)
    if read and isinstance(given := read.value(), list):
        return f"{key}=[{','.join(quote(os.path.abspath(str(path))) for path in given)}]"
    return override(key, os.path.abspath(value)) if key in FILES or os.path.exists(value) else word


def settle(cfg: DictConfig, words: Iterable[str]) -> None:
    """Applies what overrides imply: a given key sets its alternative to null, and splits=test is a list of one."""
    given = {key for word in words for key, _ in settings(word)}
    for pair in ALTERNATIVES:
        for key, other in (pair, pair[::-1]):
            if key in given and other not in given and OmegaConf.select(cfg, key) is not None:
                OmegaConf.update(cfg, other, None)
    for key in LISTS:
        if isinstance(cfg.get(key), str):
            cfg[key] = [cfg[key]]


def settings(word: str) -> Iterator[tuple[str, Any]]:
    """The keys that an override sets, with their values: of a mapping each of its own, of a sweep for each choice."""
    read = _parse(word)
    key = key_of(word) if read is None else str(read.key_or_group)
    if read is None:
        yield key, word.partition("=")[2]
    elif not read.is_delete():
        # A glob chooses among the files of a group, and has no list.
        for value in getattr(read.value(), "list", [read.value()]) if read.is_choice_sweep() else [read.value()]:
            yield key, value
            yield from leaves(value if isinstance(value, dict) else {}, key)


def config_options(hydra: DictConfig, command: str) -> list[str]:
    """The options --config-path, --config-dir and --config-name that a command was started with."""
    options: list[str] = []
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line":
            options += ["--config-dir", source.path]
        elif source.provider == "main" and Path(source.path).resolve() != CONF.resolve():
            options += ["--config-path", source.path]
    return options + (["--config-name", hydra.job.config_name] if hydra.job.config_name != command else [])


def start_folder() -> str:
    """The folder in which the command was started; hydra.job.chdir may have changed the working folder since."""
    return str(HydraConfig.get().runtime.cwd) if HydraConfig.initialized() else os.getcwd()


def options(command: str) -> list[str]:
    """The `config_options` of this run."""
    return config_options(HydraConfig.get(), command) if HydraConfig.initialized() else []


def sweep_name() -> str | None:
    """The name of the folder of this run's sweep; None for a single run.

    A trial that runs in its own process finds the folder in KIKITORI_SWEEP.
    """
    folder = os.environ.get("KIKITORI_SWEEP", "")
    if not folder and HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN:
        folder = HydraConfig.get().sweep.dir
    return Path(folder).resolve().name if folder else None


def swept(overrides: Sequence[str]) -> str:
    """The values that a sweep varies as the name of a folder: optim.lr-1e-05_seed-0.

    Constant overrides, paths for example, are left out. Characters other than letters, digits, dots and signs become
    hyphens; the many digits of a value that a search drew are rounded.
    """
    values = {key: short_number(value) for key, value in swept_values(overrides).items()}
    named = [(key, re.sub(r"[^\w.+-]+", "-", value).strip("-")[-60:]) for key, value in values.items()]
    name = "_".join(f"{key.replace('/', '.')}-{value}" for key, value in named)
    # File systems allow 255 bytes. The job's number in front keeps truncated names distinct.
    return name.encode()[:LONGEST_NAME].decode(errors="ignore")


def tasks(devices: int | str) -> int:
    """The number of Slurm tasks per machine: one per device."""
    if not isinstance(devices, int):
        raise ConfigError(f"trainer.devices={devices}: Slurm needs a number; pass trainer.devices=8")
    return devices


def or_auto(steps: int | None) -> int | str:
    """A number of steps; `auto` where the length is configured in epochs, whose steps are not known yet."""
    return "auto" if steps is None else steps


OmegaConf.register_new_resolver("kikitori.or_auto", or_auto, replace=True)
OmegaConf.register_new_resolver("kikitori.help", help_text, replace=True)
OmegaConf.register_new_resolver("kikitori.tasks", tasks, replace=True)
OmegaConf.register_new_resolver("kikitori.swept", swept, replace=True)


def to_plain(node: Any) -> Any:
    """A node as plain values, with interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def flatten(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields dotted key and value of each leaf of a configuration, with names of earlier versions translated.

    Without the groups of SWITCHES that are switched off.
    """
    off = {
        group
        for group, switch in SWITCHES.items()
        if not any(value for key, value in leaves(config.get(group)) if switch.fullmatch(key))
    }
    for key, value in leaves(config):
        if not names.DROPPED_KEYS.fullmatch(key) and key.partition(".")[0] not in off:
            name = key.rpartition(".")[2]
            value = names.RENAMED_TARGETS.get(str(value), value) if name == "_target_" else value
            yield names.RENAMED_KEYS.get(key, key), value


def leaves(node: Any, prefix: str = "", into_lists: bool = False) -> Iterator[tuple[str, Any]]:
    """Yields dotted key and value of each leaf; lists are leaves unless into_lists is set."""
    if isinstance(node, Mapping) or (into_lists and isinstance(node, list)):
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key), into_lists)
    else:
        yield prefix, node
