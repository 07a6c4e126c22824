"""Messages for names that do not exist, with the closest ones that do."""

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import pairwise

from kikitori.config.arguments import CHECKPOINT, EARLY_STOPPING, TRAINER
from kikitori.config.documentation import package, read_file, used_files
from kikitori.config.names import OF_OTHER_TOOLS, OF_TRAINING, RENAMED_CHOICES, RENAMED_KEYS, did_you_mean, split
from kikitori.config.overrides import is_readable, names_choices, override, split_words, value_of
from kikitori.runtime.files import is_utf8
from kikitori.runtime.paths import CONF

# What a command line may remove: entries of these nodes, and choices that are null by default.
REMOVABLE = ("callbacks.", "logger.", "hydra.sweeper.params.", "sweep", "experiment")
# The arguments of library classes, by node, of which conf/ has only some.
OF_LIBRARIES = {"trainer": TRAINER, "callbacks.checkpoint": CHECKPOINT, "callbacks.early_stopping": EARLY_STOPPING}
# The key that a path without one is most likely meant for.
TAKES_A_PATH = {
    **dict.fromkeys(("train", "prepare"), "data.release"),
    **dict.fromkeys(("evaluate", "guard", "export"), "checkpoint"),
}
# What a path is the value of that was given as a choice of a group.
PLACES = {
    "model": "a folder, or a name on the Hugging Face Hub, is given as model.name={0}",
    "data": "a release of Common Voice is given as data.release={0}, a list as data=manifest data.manifest={0}",
}


def wrong_words(command: str, words: Sequence[str]) -> Iterator[str]:
    """Messages for overrides that Hydra would accept and should not, or refuse in its own words."""
    for word in split_words(words)[1]:
        key, equals, value = word.lstrip("+").partition("=")
        group = key.lstrip("~")
        choices = ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml"))) if group else ""
        if not equals and command in TAKES_A_PATH and os.path.exists(word):
            yield f"{word}: no key; a path is given as {TAKES_A_PATH[command]}={word}"
        elif command in ("evaluate", "guard", "export") and key in OF_TRAINING:
            what = "an evaluation" if command == "evaluate" else f"kikitori {command}"
            yield f"{key}: belongs to kikitori train; {what} takes no steps"
        elif not key.strip():
            yield f"{word}: no key; settings are given as key=value without spaces, such as optim.lr=3e-5"
        elif not word.isprintable() and not is_utf8(word):
            yield f"{key}: {value_of(word)!r} is not UTF-8; rename the file or folder"
        elif key.startswith("~") and not group.startswith(REMOVABLE):
            remedy = f"choose one of {choices}: {group}=..." if choices else "give it a value: " + f"{group}=..."
            yield f"{word}: a setting cannot be removed; {remedy}"
        elif equals and choices and not names_choices(word):
            yield f"{word}: no such choice. There are {choices}"
        elif equals and (key == "hydra" or not re.fullmatch(r"~?[\w/.@$:-]+", key, re.ASCII)):
            yield f"{key}: no such key"
        elif equals and not is_readable(word):
            yield f"{word}: cannot be read; quote the value: {as_text(key, value)}"


def explain(error: Exception, command: str, words: Sequence[str]) -> str:
    """The message of an error of Hydra's; for an unknown key or choice it suggests the closest known one."""
    text = str(error)
    where = re.match(rf"In '(?!{command}'|hydra/config')[^']+': ", text)
    prefix = where[0] if where else ""
    missing, options = getattr(error, "missing_cfg_file", None), getattr(error, "options", None)
    if missing and options:
        groups = {path.parent.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")}
        group = max((g for g in groups if missing.startswith(f"{g}/")), key=len, default=missing.rpartition("/")[0])
        return prefix + unknown_choice(group, missing.removeprefix(f"{group}/"), options)
    if no_value := re.match(r"Error parsing override '([^'=]+)'\nmissing EQUAL", text):
        return without_value(no_value[1])
    if unknown := re.search(r"Could not (?:override|delete from config\.) '([^']+)'", text):
        # Where the value is a mapping, the cause names the key below it.
        below = str(getattr(error.__cause__, "full_key", ""))
        return prefix + unknown_key(below if below.startswith(f"{unknown[1]}.") else unknown[1], command, words)
    if several := re.search(r"Ambiguous value for argument '([^=]+)=(.*)'\n1\. To use it as a list", text, re.DOTALL):
        key, value = several.groups()
        return (
            f"{key}={value}: several values are a sweep, which needs -m; a list is written {key}=[{value}]; one value "
            f"with a comma is quoted: {as_text(key, without_quotes(value))}"
        )
    if sweep := re.search(r"Sweep parameters '(.+)' requires --multirun", text, re.DOTALL):
        return f"{sweep[1]}: a sweep needs -m"
    if twice := re.search(r"^(\S+) appears more than once in the final defaults list", text):
        return f"+{twice[1]}: this group has a choice already; leave out the +"
    if existing := re.search(r"An item is already at '([^']+)'", text):
        return f"+{existing[1]}: this key is there already; leave out the +"
    return text


def without_quotes(values: str) -> str:
    """The values of a sweep as they were given, before `quote_value` quoted those that Hydra cannot read."""
    return ",".join(value_of(f"x={value}") or "null" for value in split(values))


def as_text(key: str, value: object) -> str:
    """The word of a command line, quoted for the shell, that gives a key a text whatever characters it has."""
    text = str(value)
    return f"'{key}=\"{text}\"'" if not re.search(r"['\"\\$]", text) else shlex.quote(override(key, text))


def without_value(word: str) -> str:
    """The message for a word that is neither an option nor `key=value`."""
    key = word.lstrip("+")
    keys = closest_keys(key, dict.fromkeys(every_key(), ""))
    known = key in every_key() or (CONF / key).is_dir()
    example = f": {key}=..." if known else f": {keys[0]}=..." if keys else ", such as optim.lr=3e-5"
    return f"{word}: no value; settings are given as key=value{example}"


def unknown_choice(group: str, choice: str, options: Sequence[str]) -> str:
    """The message for a choice that a group does not have."""
    if new := RENAMED_CHOICES.get(group, {}).get(choice):
        return f"{group}={choice} is now {group}={new}"
    if "/" in choice and group in PLACES:
        return f"{group}={choice}: no such choice; {PLACES[group].format(choice)}"
    return f"{group}={choice}: no such choice{did_you_mean(choice, options) or '.'} There are {', '.join(options)}"


def unknown_key(key: str, command: str, words: Sequence[str]) -> str:
    """The message for a key, or a group, that the configuration of a command does not have with these overrides."""
    given = dict(word.lstrip("+").partition("=")[::2] for word in words)
    groups = {group: entry.value for group, entry in read_file(CONF / f"{command}.yaml").groups.items()}
    if key in RENAMED_KEYS:
        return f"{key} is now {RENAMED_KEYS[key]}"
    if key.startswith("hydra/sweeper/"):
        return f"{key}: needs hydra/sweeper=optuna"
    if (CONF / key).is_dir():
        return f"{key}: kikitori {command} has no such group; it has {', '.join(groups)}"
    every = every_key()
    if "." not in key and (close := get_close_matches(key, groups, n=1)):
        return f"{key}: no such group; did you mean {close[0]}?"
    if key in every:
        owners = " or ".join(owner for owner in every[key] if owner.partition("=")[0] in groups)
        if owners:
            return f"{key}: no such key here; it belongs to {owners}"
        commands = " or ".join(f"kikitori {owner}" for owner in every[key] if (CONF / f"{owner}.yaml").exists())
        return f"{key}: not a key of kikitori {command}" + (f"; it belongs to {commands}" if commands else "")
    chosen = {group: choice for group, choice in given.items() if (CONF / group / f"{choice}.yaml").is_file()}
    used = used_files([CONF], command, groups | chosen)
    known = {package(name, file) + key: entry.comment for name, file in used.items() for key, entry in file.leaves()}
    node, _, name = key.rpartition(".")
    if (rule := OF_LIBRARIES.get(node, {}).get(name)) and any(other.startswith(f"{node}.") for other in known):
        return f"{key}: " + (rule.otherwise if rule.is_replaced else f"not set yet; add it with a +: +{key}=...")
    siblings = {other.rpartition(".")[2]: other for other in known if other.rpartition(".")[0] == node}
    if near := [s for s in siblings if s.startswith(name)] or get_close_matches(name, siblings, n=1, cutoff=0.75):
        return f"{key}: no such key; did you mean {siblings[near[0]]}?"
    if close := closest_keys(key, known):
        return f"{key}: no such key; did you mean {' or '.join(close)}?"
    if close := closest_keys(key, dict.fromkeys(every, "")):
        return f"{key}: no such key; did you mean {close[0]}, of {' or '.join(every[close[0]])}?"
    there = ", ".join(other for other in known if other.startswith(f"{node or key}."))
    return f"{key}: no such key; {f'there are {there}' if there else f'see kikitori {command} --help'}"


def closest_keys(key: str, known: Mapping[str, str]) -> list[str]:
    """Up to three known keys that a key may stand for: by its name in other tools, last part, spelling or comments."""
    last = key.rpartition(".")[2]
    if OF_OTHER_TOOLS.get(last) in known:
        return [OF_OTHER_TOOLS[last]]
    ends = {other: other.rpartition(".")[2] for other in known}
    spelt, spelt_end = get_close_matches(key, known, cutoff=0.8), get_close_matches(last, ends.values(), cutoff=0.75)
    meaning = last.replace("_", " ").lower()
    for is_close in (
        lambda other: ends[other] == last or ends[other].endswith(f"_{last}"),
        lambda other: other in spelt or ends[other] in spelt_end,
        lambda other: len(meaning) > 3 and known[other].lower().startswith(meaning),
    ):
        if found := list(filter(is_close, known)):
            # Keys of the same node first.
            return sorted(found, key=lambda other: other.partition(".")[0] != key.partition(".")[0])[:3]
    return []


def unknown_option(words: Sequence[str], options: Sequence[str]) -> str | None:
    """The message for an option that does not exist, which often is a key: --max_steps 3."""
    for word, following in pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        key = name.lstrip("-").replace("-", "_")
        # argparse accepts abbreviated options.
        if not name.startswith("-") or any(option.startswith(name) for option in options):
            continue
        value = value if equals or following.startswith("-") or "=" in following else following
        keys = [key] if (CONF / key).is_dir() else closest_keys(key, dict.fromkeys(every_key(), ""))
        # It also accepts a value right after an option of one letter.
        if not name.startswith("--") and not keys:
            continue
        example = f": {keys[0]}={value or '...'}" if keys else ", such as optim.lr=3e-5"
        return f"{name} is not an option; settings are given as key=value{example}"
    return None


def every_key() -> dict[str, list[str]]:
    """Every key of conf/, with the choices that have it (`data=demo`) or the root file (`train`)."""
    found: dict[str, list[str]] = {}
    for path in sorted(CONF.rglob("*.yaml"), key=lambda path: len(path.parts)):
        name, file = path.relative_to(CONF).with_suffix("").as_posix(), read_file(path)
        if not file.is_global:
            for key, _ in file.leaves():
                found.setdefault(package(name, file) + key, []).append("=".join(name.rsplit("/", 1)))
    return found
