"""Every key of conf/ has a comment, and --help and docs/configuration.md show them."""

import re
import shlex
from pathlib import Path

import pytest
from generate_configuration import reference
from hydra import compose, initialize_config_dir

from kikitori.config.documentation import comments, read_file, settable, show, used_files
from kikitori.runtime.paths import CONF

FILES = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml"))
WITH_COMMAND = [name for name in FILES if name in ("train", "evaluate", "prepare") or name[:5] in ("exper", "sweep")]


@pytest.mark.parametrize("name", FILES)
def test_no_key_lacks_a_comment(name: str) -> None:
    file = read_file(CONF / f"{name}.yaml")
    assert file.header, "a file begins with a comment"
    # A mapping over several lines needs none of its own: its keys have theirs.
    assert not [key for key, entry in file.keys.items() if entry.value and not entry.comment]
    assert not [group for group, entry in file.groups.items() if not entry.comment]


def test_every_key_is_found_in_a_file() -> None:
    assert sum(len(read_file(CONF / f"{name}.yaml").leaves()) for name in FILES) > 150


@pytest.mark.parametrize("name", WITH_COMMAND)
def test_a_root_an_experiment_and_a_sweep_begin_with_a_command_that_composes(name: str) -> None:
    lines = (CONF / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    command = next(line[line.index("kikitori ") :] for line in lines[:2] if "kikitori " in line)
    words = shlex.split(command)
    assert words[1] == (name if "/" not in name else "train")
    assert "/" not in name or "=".join(name.split("/")) in words
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        compose(words[1], words[2:])


def test_a_comment_is_at_the_end_of_the_line_or_above_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "# What the file is for.\n"
        "defaults:\n  - base\n  - _self_\n  - data: demo  # corpus\n  - override /model: micro  # Whisper\n\n"
        "# Above,\n# in two lines.\n"
        "one: 1\n"
        'two: "#2"  # At the end.\n'
        "node:  # Of the node.\n"
        "  three: [1, 2]  # Of a list.\n"
        "  bare: 4\n"
        "# Of all of a line.\n"
        "flow: {five: 5, six: {seven: 7}}\n"
    )
    file = read_file(tmp_path / "a.yaml")
    assert file.header == ["What the file is for."]
    assert file.parents == ["base"]
    assert {name: (entry.value, entry.comment) for name, entry in file.groups.items()} == {
        "data": ("demo", "corpus"),
        "model": ("micro", "Whisper"),
    }
    assert {key: (entry.value, entry.comment) for key, entry in file.leaves()} == {
        "one": ("1", "Above, in two lines."),
        "two": ('"#2"', "At the end."),
        "node.three": ("[1, 2]", "Of a list."),
        "node.bare": ("4", ""),
        "flow.five": ("5", "Of all of a line."),
        "flow.six.seven": ("7", "Of all of a line."),
    }
    assert file.keys["node"].comment == "Of the node."


def test_a_choice_replaces_the_comments_of_its_parents_and_an_experiment_does_not() -> None:
    choices = {"trainer": "ddp", "data": "demo", "experiment": "demo", "callbacks": ["early_stopping"]}
    found = comments(used_files([CONF], "train", choices))
    assert found["trainer.precision"].startswith("auto (16-mixed on a GPU")
    assert found["trainer.strategy.collective_timeout_s"].startswith("Seconds that processes wait")
    assert found["data.allow_shared_speakers"].endswith("the sentences differ.")
    assert found["data.global_batch_size"] == "Clips per optimizer step, over all devices."
    assert found["callbacks.checkpoint.monitor"].startswith("Validation score that decides")
    assert found["callbacks.early_stopping.patience"].startswith("Validations without improvement")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        ("", '""'),
        ([2, "a", None], "[2,a,null]"),
        ({"train": None, "sample": False}, "{train: null, sample: false}"),
        ("none", "none"),
        (0, "0"),
        (1e-5, "1e-05"),
    ],
)
def test_a_value_is_shown_as_a_command_line_takes_it(value: object, text: str) -> None:
    assert show(value) == text


def test_what_follows_from_the_choices_is_not_shown_as_a_key() -> None:
    node = {"a": {"_target_": "x", "_partial_": True, "b": 1, "c": {}}, "d": []}
    assert list(settable(node)) == [("a.b", 1), ("a.c", {}), ("d", [])]


def test_the_page_of_the_configuration_is_current() -> None:
    page = Path(__file__).parents[2] / "docs/configuration.md"
    assert page.read_text(encoding="utf-8") == reference(), (
        "run: python docs/generate_configuration.py > docs/configuration.md"
    )


def test_the_page_of_the_configuration_has_every_choice_and_key() -> None:
    page = reference()
    for name in FILES:
        if "/" in name:
            assert f"- `{'='.join(name.rsplit('/', 1))}`: " in page
    assert "| `data.release` (common_voice) | `???` | " in page
    assert "Builds `kikitori.WandbRunLogger`." in page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert all(re.fullmatch(r"\| `\S+`( \([\w, ]+\))? \| .+ \| .+ \|", row) for row in rows)
