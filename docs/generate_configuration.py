"""Prints docs/configuration.md: `python docs/generate_configuration.py > docs/configuration.md`."""

import re
from collections.abc import Mapping, Sequence

from kikitori.config.arguments import ARGUMENTS
from kikitori.config.documentation import SWEEP_GROUPS, ConfigFile, described_groups, read_file
from kikitori.runtime.paths import CONF

INTRODUCTION = """\
# Configuration

<!-- Made from the comments in conf/ by `python docs/generate_configuration.py > docs/configuration.md`. -->

Every setting is a key in a YAML file under [conf/](../conf) and can be changed on the command line as `key=value`:
`kikitori train optim.lr=3e-5`. A folder there is a group, each of its files a choice: `kikitori train data=manifest`.
The root file comes first, then the choices, then `experiment`, then the command line; later values win.
`kikitori train --help` shows the same for the choices made, `--cfg job` the composed values. `???` must be given.
Your own choices and experiments go into a folder of the same layout, `--config-dir my_conf`, as `experiment=mine`.

- **Values** may hold spaces, Japanese, brackets, `=` or `#`; only the shell needs quotes:
  `'data.manifest=録音 (1)/metadata.csv'`. Commas separate the values of a sweep. A text with a comma, or one that looks
  like a number or a list, has double quotes inside those of the shell: `'data.revision="1e5"'`. The name of a file that
  exists needs none. Relative paths are relative to the folder where the command is started.
- **Length:** `trainer.max_steps` or `trainer.max_epochs`, and `validation.every_steps` or `validation.every_epochs`. On
  the command line one replaces the other; in a file, set the other to null.
- **Arguments of libraries** that are not listed below are added with `+`, as in `+trainer.benchmark=true`. Those that
  mean here what the library says can be set; the others are refused with what to use instead. In all, these can be set:
"""
# The classes whose arguments the introduction lists.
LIBRARIES = ("Trainer", "callbacks.ModelCheckpoint", "callbacks.EarlyStopping", "loggers.TensorBoardLogger")


def reference() -> str:
    """docs/configuration.md: every choice and every key, with their comments."""
    files = {p.relative_to(CONF).with_suffix("").as_posix(): read_file(p) for p in sorted(CONF.rglob("*.yaml"))}
    described = described_groups(files)
    parts = [INTRODUCTION + "\n".join(map(_arguments, LIBRARIES))]
    for root in ("train", "evaluate", "prepare", "guard", "average", "export"):
        parts += [f"## kikitori {root}", _sentence(files[root].header), _table({root: files[root]}, "")]
    parts += [
        "## All of these commands",
        _sentence(files["base"].header),
        _table({"base": files["base"]}, ""),
    ]
    groups = dict.fromkeys([*files["train"].groups, *SWEEP_GROUPS])
    for group in groups:
        own = {name: file for name, file in files.items() if name.rpartition("/")[0] == group}
        parts += [
            f"## {group}",
            _sentence([f"{described[group][:1].upper()}{described[group][1:]}."]),
            "\n".join(map(_choice, own, own.values())),
        ]
        if not any(file.is_global for file in own.values()):
            parts += [_table(own, group.replace("/", ".") + ".")]
    return "\n\n".join(filter(None, parts)) + "\n"


def _arguments(name: str) -> str:
    """The arguments of one of Lightning's classes that a configuration may set."""
    rules = ARGUMENTS[f"pytorch_lightning.{name}"]
    return f"  - `{name}`: {', '.join(f'`{key}`' for key, rule in rules.items() if not rule.is_replaced)}"


def _sentence(header: Sequence[str]) -> str:
    """A header in one line, its command as code."""
    return " ".join(re.sub(r"(^|\s)\s+(kikitori .*)", r"\1`\2`", line) for line in header)


def _choice(name: str, file: ConfigFile) -> str:
    group, _, choice = name.rpartition("/")
    targets = [entry.value for key, entry in file.keys.items() if key.rpartition(".")[2] == "_target_"]
    builds = f" Builds {', '.join(f'`{target}`' for target in targets)}." if targets else ""
    own = [f"`{key}={entry.value}`" for key, entry in file.leaves()] if file.is_global else []
    return f"- `{group}={choice}`: {_sentence(file.header)}{builds}" + f" Sets {', '.join(own)}." * bool(own)


def _table(files: Mapping[str, ConfigFile], package: str) -> str:
    """A table of keys; the same key of several choices makes one row, and a choice has the keys of its parents, too."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for name, file in files.items():
        for key, entry in file.leaves():
            rows.setdefault((key, entry.comment), {})[name.rpartition("/")[2]] = entry.value
    lines = []
    for (key, comment), values in rows.items():
        value = f"`{next(iter(values.values()))}`" if len(set(values.values())) == 1 else "by choice"
        owners = {name for name in files if {name.rpartition("/")[2], *files[name].parents} & values.keys()}
        only = f" ({', '.join(values)})" if len(owners) < len(files) else ""
        lines.append(f"| `{package}{key}`{only} | {value} | {comment} |")
    return "\n".join(["| key | value | meaning |", "| --- | --- | --- |", *lines]) if lines else ""


if __name__ == "__main__":
    print(reference(), end="")
