"""Splits a command line into options and overrides, as Hydra's parser does."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path

# Hydra's options that choose configuration files, and those whose value is a folder.
CONFIG_FOLDER = ("--config-dir", "-cd", "--config-path", "-cp")
CONFIG = (*CONFIG_FOLDER, "--config-name", "-cn")
# All that take a value.
WITH_VALUE = (*CONFIG, "--cfg", "-c", "--package", "-p", "--info", "-i", "--experimental-rerun")


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
    return list(_config_folders(*split_words(words)))


def _config_folders(options: Sequence[str], overrides: Sequence[str]) -> Iterator[Path]:
    for word, following in pairwise([*options, ""]):
        if _is_option(word, CONFIG_FOLDER):
            _, equals, value = word.partition("=")
            yield Path(value if equals else following)
    for word in overrides:
        if word.startswith("hydra.searchpath="):
            yield from map(Path, re.findall(r"file://([^,\]'\"]+)", word))


def _is_option(word: str, options: Sequence[str]) -> bool:
    """Whether a word is one of the options; argparse accepts abbreviated long ones."""
    name = word.partition("=")[0]
    return name in options or (len(name) > 2 and name[:2] == "--" and any(o.startswith(name) for o in options))
