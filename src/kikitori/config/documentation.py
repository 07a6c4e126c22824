"""Reads the documentation of the configuration from the comments in its YAML files, and shows it for --help."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from kikitori.runtime.paths import CONF

WIDTH = 80
# libyaml reads a file in a fifth of the time.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Groups of Hydra that concern sweeps, with the choice that adds each.
SWEEP_GROUPS = ("hydra/launcher", "hydra/sweeper", "hydra/sweeper/sampler", "hydra/sweeper/pruner")
# Keys of Hydra that users set.
HYDRA_KEYS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.launcher.", "hydra.sweeper.")
NOTES = (
    "???: must be given. ${...}: takes the value of another key. A list is written '[a,b]', a mapping '{a: 1, b: 2}'.",
    "Keys depend on the choices: `kikitori COMMAND data=manifest --help` shows those of data=manifest. Arguments of "
    "Lightning's Trainer and of transformers' WhisperConfig that are not listed are added with +, as in "
    "+trainer.benchmark=true.",
    "`--cfg job` prints the composed configuration, `--hydra-help` the options of Hydra.",
)


@dataclass
class Entry:
    """A key or a group. value: its text in the file, empty for a mapping over several lines."""

    value: str
    comment: str


@dataclass
class ConfigFile:
    """A YAML file of the configuration.

    header: the lines of its first comment. keys: by dotted key, relative to the file's package. groups: by name, from
    the defaults list. parents: files of the same folder in that list. is_global: whether its keys are absolute.
    """

    header: list[str] = field(default_factory=list)
    keys: dict[str, Entry] = field(default_factory=dict)
    groups: dict[str, Entry] = field(default_factory=dict)
    parents: list[str] = field(default_factory=list)
    is_global: bool = False

    def leaves(self) -> list[tuple[str, Entry]]:
        """The keys that hold a value; `_target_` and its like follow from the choice."""
        inner = {key for key in self.keys if any(other.startswith(f"{key}.") for other in self.keys)}
        return [(k, e) for k, e in self.keys.items() if k not in inner and not k.rpartition(".")[2].startswith("_")]


def read_file(path: Path) -> ConfigFile:
    """Reads the keys of a YAML file with their comments: at the end of a key's line, or directly above it."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    file = ConfigFile()
    for line in lines:
        if not line.startswith("#"):
            break
        file.header.append(line[1:].removeprefix(" "))
    if file.header[:1] == ["@package _global_"]:
        file.is_global = bool(file.header.pop(0))
    for key, node, entry in _entries(yaml.compose(text, Loader=LOADER), text, lines):
        if key != "defaults":
            file.keys[key] = entry
            continue
        for item in node.value:
            if isinstance(item, yaml.ScalarNode):
                file.parents += [item.value] if item.value != "_self_" else []
            for group, _, chosen in _entries(item, text, lines):
                file.groups[group.removeprefix("override ").lstrip("/")] = chosen
    return file


def _entries(node: Any, text: str, lines: Sequence[str]) -> Iterator[tuple[str, Any, Entry]]:
    """Yields dotted key, value node and entry of every key of a mapping, at any depth."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        is_block = isinstance(value, yaml.MappingNode) and not value.flow_style
        shown = "" if is_block else text[value.start_mark.index : value.end_mark.index].strip()
        comment = _comment(key, value, lines)
        yield key.value, value, Entry(shown, comment)
        for below, child, entry in _entries(value, text, lines):
            # Keys of a mapping in one line share the line's comment.
            yield f"{key.value}.{below}", child, Entry(entry.value, entry.comment or ("" if is_block else comment))


def _comment(key: Any, value: Any, lines: Sequence[str]) -> str:
    is_block = isinstance(value, yaml.CollectionNode) and not value.flow_style
    end = key.end_mark if is_block else value.end_mark
    rest = lines[end.line][end.column :].lstrip(":") if end.line < len(lines) else ""
    if rest.lstrip().startswith("#") and rest != rest.lstrip():
        return rest.lstrip(" #")
    number, column = key.start_mark.line, key.start_mark.column
    above: list[str] = []
    while number and not lines[number][:column].strip(" -") and lines[number - 1].startswith(" " * column + "#"):
        number -= 1
        above.insert(0, lines[number].strip(" #"))
    return " ".join(above)


def used_files(folders: Sequence[Path], root: str, choices: Mapping[str, Any]) -> dict[str, ConfigFile]:
    """The files that a configuration was composed from, by name (`data/demo`); a file comes after its parents."""
    files: dict[str, ConfigFile] = {}

    def add(name: str) -> None:
        path = next((folder / f"{name}.yaml" for folder in folders if (folder / f"{name}.yaml").is_file()), None)
        if path and name not in files:
            file = read_file(path)
            for parent in file.parents:
                add(str(Path(name).parent / parent))
            files[name] = file

    add(root)
    for group, chosen in choices.items():
        for choice in chosen if isinstance(chosen, list) else [chosen]:
            add(f"{group}/{choice}")
    return files


def comments(files: Mapping[str, ConfigFile]) -> dict[str, str]:
    """The comment of each dotted key. Experiments and sweeps, whose comments give reasons, do not replace others."""
    found: dict[str, str] = {}
    for name, file in sorted(files.items(), key=lambda item: not item[1].is_global):
        found |= {package(name, file) + key: entry.comment for key, entry in file.keys.items() if entry.comment}
    return found


def package(name: str, file: ConfigFile) -> str:
    """The prefix of a file's keys in a composed configuration, such as `data.`."""
    return "" if file.is_global or "/" not in name else name.rpartition("/")[0].replace("/", ".") + "."


def described_groups(files: Mapping[str, ConfigFile]) -> dict[str, str]:
    """The comment of each group in the defaults lists."""
    found: dict[str, str] = {}
    for name, file in files.items():
        folder = "" if file.is_global else name.rpartition("/")[0]
        found |= {f"{folder}/{group}".lstrip("/"): e.comment for group, e in file.groups.items() if e.comment}
    return found


def help_text(*, _root_: DictConfig) -> str:
    """The text of --help: groups with their choices, then keys with their values and comments.

    It is the resolver ${kikitori.help:} of conf/base.yaml.
    """
    hydra: Any = OmegaConf.to_container(_root_.hydra)
    root, choices = hydra["job"]["config_name"], hydra["runtime"]["choices"]
    folders = [Path(source["path"]) for source in hydra["runtime"]["config_sources"] if source["schema"] == "file"]
    files = used_files(folders, root, choices)
    documented = comments(files)
    lines = [*files[root].header, "", "Choices, as group=choice:", ""]
    own = [group for group in [*files[root].groups, *choices] if not group.startswith("hydra/")]
    lines += _help_of_groups(list(dict.fromkeys(own)), choices, files)
    if SWEEP_GROUPS[0] in files[root].groups:
        optuna = {"hydra/sweeper/optuna": read_file(CONF / "hydra/sweeper/optuna.yaml")}
        lines += ["", "Choices for sweeps (-m):", "", *_help_of_groups(SWEEP_GROUPS, choices, optuna | files)]
    lines += ["", "Keys, as key=value:", ""]
    values: Any = OmegaConf.to_container(_root_)
    values["hydra"] = values.pop("hydra")  # last
    for key, value in settable(values):
        if not key.startswith("hydra.") or (key.startswith(HYDRA_KEYS) and key in documented):
            lines += _wrap(f"{key}={show(value)}", 2) + _wrap(documented.get(key, ""), 6)
    for note in NOTES:
        lines += ["", *_wrap(note.replace("COMMAND", root), 0)]
    return "\n".join(lines)


def _help_of_groups(
    groups: Sequence[str], choices: Mapping[str, Any], files: Mapping[str, ConfigFile]
) -> Iterator[str]:
    described, loader = described_groups(files), GlobalHydra.instance().config_loader()
    for group in groups:
        names = ", ".join(loader.get_group_options(group))
        yield from _wrap(f"{group}={show(choices.get(group))}", 2)
        yield from _wrap(": ".join(filter(None, [described.get(group), names])), 6)


def settable(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields dotted key and value of every leaf but `_target_` and its like, which follow from the choices."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from settable(value, f"{prefix}{key}.")
        elif not key.startswith("_"):
            yield f"{prefix}{key}", value


def show(value: Any) -> str:
    """A plain value as a command line takes it."""
    if isinstance(value, list):
        return f"[{','.join(map(show, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {show(item)}' for key, item in value.items())}}}"
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return str(value) or '""'


def _wrap(text: str, indent: int) -> list[str]:
    margin = " " * indent
    return textwrap.wrap(text, WIDTH, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False)
