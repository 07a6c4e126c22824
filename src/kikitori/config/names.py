"""Old and misspelt names in configurations.

A command line with an old name is refused with the new one. The record of an old run or sweep is translated when it is
read, so that it can be resumed and compared. For a misspelt name the closest known ones are suggested.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

from kikitori.config.documentation import package, read_file, used_files
from kikitori.runtime.paths import CONF

# Values of `_target_`: modules, before configurations named what the package exports.
RENAMED_TARGETS = {
    "kikitori.datamodule.CommonVoice": "kikitori.CommonVoice",
    "kikitori.datamodule.Demo": "kikitori.Demo",
    "kikitori.datamodule.Hub": "kikitori.Hub",
    "kikitori.datamodule.Manifest": "kikitori.Manifest",
    "kikitori.optim.build": "kikitori.adamw",
    "kikitori.pruning.PruneByStudy": "kikitori.OptunaPruning",
    "kikitori.tracking.RunLogger": "kikitori.WandbRunLogger",
    "kikitori.trainer.ddp": "kikitori.ddp",
    "kikitori.whisper.build": "kikitori.build_whisper",
    "kikitori.whisper.load": "kikitori.load_whisper",
}
RENAMED_KEYS = {
    "accept": "resume_accept",
    "data.batch": "data.micro_batch_size",
    "data.cache_encoder": "data.cache_encoder_outputs",
    "data.global_batch": "data.global_batch_size",
    "sweep.resume": "resume_sweep",
}
# The node whose keys are the keys that a sweep varies.
SWEPT = "hydra.sweeper.params"
# By group.
RENAMED_CHOICES = {
    "callbacks": {"best": "best_checkpoint"},
    "experiment": {"article": "tutorial_100_clips", "hf_blog": "hf_fine_tune_whisper"},
}


def outdated(overrides: Iterable[str], own: Sequence[Path] = ()) -> Iterator[str]:
    """Yields one message for each override that uses an old name. own: the user's configuration folders."""
    for word in overrides:
        key, _, value = word.lstrip("+~").partition("=")
        new_key, _, new_value = translate(word, own).lstrip("+~").partition("=")
        if new_key != key:
            yield f"{key} is now {new_key}"
        elif new_value != value:
            yield f"{key}={value} is now {key}={new_value}"


def translate(override: str, own: Sequence[Path] = ()) -> str:
    """An override with the names of this version. Its value may be a list or a sweep of several, or a mapping.

    own: the user's configuration folders; a choice that is a file there keeps its name.
    """
    text = re.sub(
        r"(_target_\s*[=:]\s*)([\w.]+)", lambda found: found[1] + RENAMED_TARGETS.get(found[2], found[2]), override
    )
    text = re.sub(r"(\$\{)([\w.]+)", lambda found: found[1] + RENAMED_KEYS.get(found[2], found[2]), text)
    key, equals, value = text.partition("=")
    return f"{_new_key(key)}{equals}{_translate_value(_swept_key(key), value, own)}"


def _translate_value(key: str, value: str, own: Sequence[Path] = ()) -> str:
    """The value of a key with the names of this version: of choices of a group, and of keys in a mapping."""
    parts = _split(value)
    if len(parts) > 1:
        return ",".join(_translate_value(key, part, own) for part in parts)
    core = value.strip()
    if bracketed := re.fullmatch(r"(\w*\(|\[|['\"])(.*)([)\]'\"])", core, re.DOTALL):
        changed = bracketed[1] + _translate_value(key, bracketed[2], own) + bracketed[3]
    elif core[:1] == "{" and core[-1:] == "}":
        changed = "{" + ",".join(_translate_item(key, item, own) for item in _split(core[1:-1])) + "}"
    else:
        changed = RENAMED_CHOICES.get(key, {}).get(core, core)
        if changed != core and any((folder / key / f"{core}.yaml").exists() for folder in own):
            changed = core
    return value.replace(core, changed, 1) if core else value


def _translate_item(parent: str, item: str, own: Sequence[Path]) -> str:
    """One `key: value` of the mapping that is the value of `parent`."""
    name, colon, value = item.partition(":")
    prefix = "" if parent == SWEPT else f"{parent}."
    key = prefix + name.strip().lstrip("+~")
    new = RENAMED_KEYS.get(key, key)
    if new.startswith(prefix):
        name = name.replace(key.removeprefix(prefix), new.removeprefix(prefix))
    return f"{name}{colon}{_translate_value(key, value, own)}"


def _new_key(key: str) -> str:
    name = _swept_key(key)
    return key.removesuffix(name) + RENAMED_KEYS.get(name, name)


def _swept_key(key: str) -> str:
    """The key itself, or the one that a key of `hydra.sweeper.params` varies."""
    return key.lstrip("+~").removeprefix(f"{SWEPT}.").lstrip("+~")


def _split(text: str) -> list[str]:
    """The parts between the commas that are in no brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for before, character in zip(" " + text, text, strict=False):
        if quote:
            quote = "" if character == quote and before != "\\" else quote
        elif character in "'\"":
            quote = character
        depth += (character in "([{") - (character in ")]}") if not quote else 0
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def explain(error: Exception, command: str, words: Sequence[str]) -> str:
    """The message of an error of Hydra's; for an unknown key or choice it suggests the closest known one."""
    text = str(error)
    where = re.match(rf"In '(?!{command}'|hydra/config')[^']+': ", text)
    prefix = where[0] if where else ""
    missing, options = getattr(error, "missing_cfg_file", None), getattr(error, "options", None)
    if missing and options:
        group, _, choice = missing.rpartition("/")
        return prefix + unknown_choice(group, choice, options)
    if no_value := re.match(r"Error parsing override '([^'=]+)'\nmissing EQUAL", text):
        return without_value(no_value[1])
    if unknown := re.search(r"Could not (?:override|delete from config\.) '([^']+)'", text):
        return prefix + unknown_key(unknown[1], command, words)
    if existing := re.search(r"An item is already at '([^']+)'", text):
        return f"+{existing[1]}: this key is there already; leave out the +"
    return text


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
    used = used_files([CONF], command, {group: given.get(group, default) for group, default in groups.items()})
    known = {package(name, file) + key: entry.comment for name, file in used.items() for key, entry in file.leaves()}
    if close := closest_keys(key, known):
        return f"{key}: no such key; did you mean {' or '.join(close)}?"
    if close := closest_keys(key, dict.fromkeys(every, "")):
        return f"{key}: no such key; did you mean {close[0]}, of {' or '.join(every[close[0]])}?"
    siblings = ", ".join(other for other in known if other.startswith(f"{key.rpartition('.')[0] or key}."))
    return f"{key}: no such key; {f'there are {siblings}' if siblings else f'see kikitori {command} --help'}"


def closest_keys(key: str, known: Mapping[str, str]) -> list[str]:
    """Up to three known keys that a key may stand for: by its last part, by its spelling, or by their comments."""
    last = key.rpartition(".")[2]
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
        # argparse accepts abbreviated options.
        if not name.startswith("--") or any(option.startswith(name) for option in options):
            continue
        value = value if equals or following.startswith("-") or "=" in following else following
        keys = closest_keys(name.lstrip("-").replace("-", "_"), dict.fromkeys(every_key(), ""))
        example = f": {keys[0]}={value or '...'}" if keys else ", such as optim.lr=3e-5"
        return f"{name} is not an option; settings are given as key=value{example}"
    return None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the closest known name, if one is close."""
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def every_key() -> dict[str, list[str]]:
    """Every key of conf/, with the choices that have it (`data=demo`) or the root file (`train`)."""
    found: dict[str, list[str]] = {}
    for path in sorted(CONF.rglob("*.yaml"), key=lambda path: len(path.parts)):
        name, file = path.relative_to(CONF).with_suffix("").as_posix(), read_file(path)
        if not file.is_global:
            for key, _ in file.leaves():
                found.setdefault(package(name, file) + key, []).append("=".join(name.rsplit("/", 1)))
    return found
