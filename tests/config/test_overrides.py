"""Words of the command line: values that need no quotes, and what words imply."""

import shlex
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from kikitori.config import overrides
from kikitori.config.overrides import PATHS, absolute_paths, override, quote_value, settle, value_of
from kikitori.config.suggestions import as_text, explain, wrong_words
from kikitori.config.validation import check_config
from kikitori.runtime.errors import ConfigError
from kikitori.runtime.paths import CONF

# What files are called: letters of any script, spaces, and every mark that a shell can pass.
NAMES = st.text(
    st.one_of(
        st.sampled_from("abz019._-録音がé (){}[]<>,;:=#'\"!&%$@~^+*?|`\\"),
        st.characters(codec="utf-8", exclude_characters="\0/"),
    ),
    min_size=1,
    max_size=12,
)


def read(word: str) -> Override:
    return OverridesParser.create().parse_override(word)


@settings(max_examples=200)
@given(NAMES)
def test_the_name_of_an_existing_file_reaches_the_configuration_as_it_is(name: str) -> None:
    with mock.patch("os.path.lexists", lambda path: path == name):
        word = quote_value(f"data.manifest={name}")
    # OmegaConf reads \\${ as ${.
    assert OmegaConf.create({"x": read(word).value()}).x == name or ("${" in name and "\\" in name)


@settings(max_examples=200)
@given(NAMES)
def test_a_value_is_taken_as_it_is_unless_hydra_has_a_meaning_for_it(name: str) -> None:
    word = quote_value(f"data.manifest={name}")
    assert not list(wrong_words("train", [word]))
    value = None if (parsed := read(word)).is_sweep_override() else parsed.value()
    # A sweep, a number, a list, a backslash that escapes, quotes and interpolations are Hydra's; the rest is the name.
    if isinstance(value, str) and not set(name) & set("'\"\\$"):
        assert value == name
    assert read(shlex.split(as_text("data.manifest", name))[0]).value() == name.replace("${", "\\${")


def test_several_values_without_a_sweep_are_answered_with_the_quoted_word() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(HydraException) as caught:
        compose("prepare", ["data=manifest", "data.manifest=a,b"])
    assert explain(caught.value, "prepare", ["data=manifest"]) == (
        "data.manifest=a,b: several values are a sweep, which needs -m; a list is written data.manifest=[a,b]; one "
        "value with a comma is quoted: 'data.manifest=\"a,b\"'"
    )


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("=3", "=3: no key; settings are given as key=value"),
        ("録=1", "録: no such key"),
        (" seed=1", " seed: no such key"),
        ("hydra=3", "hydra: no such key"),
        ("trainer=3", "trainer=3: no such choice. There are auto, ddp"),
        ("optim=null", "optim=null: no such choice. There are adamw"),
        ("~trainer", "~trainer: a setting cannot be removed; choose one of auto, ddp: trainer=..."),
        ("~trainer=ddp", "~trainer=ddp: a setting cannot be removed; choose one of auto, ddp: trainer=..."),
        ("~optim.lr", "~optim.lr: a setting cannot be removed; give it a value: optim.lr=..."),
        ("data.manifest=\udcff.csv", "data.manifest: '\\udcff.csv' is not UTF-8; rename the file or folder"),
    ],
)
def test_a_word_that_hydra_would_misread_is_refused(word: str, message: str) -> None:
    (found,) = wrong_words("train", [quote_value(word)])
    assert found.startswith(message)


@pytest.mark.parametrize(
    "word", ["~callbacks.early_stopping", "~logger.wandb", "~sweep", "--help", "sweep=size", "optim={lr: 1}"]
)
def test_other_words_pass(word: str) -> None:
    assert not list(wrong_words("train", [word]))


def test_a_quoted_word_is_read_as_its_value() -> None:
    for text in ("a'b", "a\\", "a\\'b", 'a"b', "a\\\\b", "録 (1)", "a,b", "[1]", "null", "", " a ", "${x}"):
        assert value_of(override("x", text)) == text.replace("${", "\\${") or not text
        (word,) = shlex.split(as_text("x", text))
        assert value_of(word) == text.replace("${", "\\${") or not text


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("data.manifest=録音/metadata.csv", "録音/metadata.csv"),
        ("data.manifest=rec (1)/metadata.csv", "rec (1)/metadata.csv"),
        ("data.release=cv-corpus-27.0 (ja).tar.gz", "cv-corpus-27.0 (ja).tar.gz"),
        ("data.path_column=ファイル名", "ファイル名"),
        ("data.manifest=rec[1].csv", "rec[1].csv"),
        ("data.manifest=a=b#c.csv", "a=b#c.csv"),
        ("data.manifest=it's.csv", "it's.csv"),
        ("data.manifest= a", " a"),
        ("x={train: 録音/a.csv, test: 'b,c.csv'}", {"train": "録音/a.csv", "test": "b,c.csv"}),
        ("x=[録音,b,3]", ["録音", "b", 3]),
        ("x=http://録音", "http://録音"),
    ],
)
def test_a_value_needs_no_quotes_of_hydras(word: str, value: Any) -> None:
    assert read(quote_value(word)).value() == value


@pytest.mark.parametrize(
    "word",
    [
        *("optim.lr=1e-4", "seed=0,1", "optim.lr=choice(1e-3,1e-4)", "optim.lr=tag(log, interval(1e-6, 1e-4))"),
        *("data.limit={train: 8}", "resume_accept=[trainer.max_steps]", "x='a b'", 'x="a"', "model=micro", "x=a\\,b"),
        *("x=${data.language}", "+x=1", "~callbacks.x", "x=null", "x=", "no-equals"),
    ],
)
def test_hydras_own_syntax_is_unchanged(word: str) -> None:
    assert quote_value(word) == word


def test_a_sweep_over_names_that_need_quotes_stays_a_sweep() -> None:
    assert quote_value("data.manifest=録 (1)/a.csv,b.csv") == "data.manifest='録 (1)/a.csv',b.csv"
    assert quote_value("model.name=choice(録/a, b)") == "model.name=choice('録/a', b)"


def test_a_file_of_this_very_name_is_one_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.csv", "[1]", "7", "null", "choice(a)"):
        Path(name).touch()
        assert value_of(quote_value(f"data.manifest={name}")) == name
        # Other keys do not name files.
        assert quote_value(f"data.limit.train={name}") == f"data.limit.train={name}"


def composed(command: str, *words: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(command, ["data=demo", *words])
    settle(cfg, words)
    return cfg


def lengths(*words: str) -> tuple[Any, Any]:
    trainer = composed("train", "logger=none", *words).trainer
    return trainer.max_steps, trainer.max_epochs


@pytest.mark.parametrize(
    ("words", "steps_and_epochs"),
    [
        ([], (4000, None)),
        (["trainer.max_epochs=3"], (None, 3)),
        (["experiment=demo", "trainer.max_epochs=3"], (None, 3)),
        (["trainer={max_epochs: 3}"], (None, 3)),
        (["++trainer.max_epochs=3"], (None, 3)),
        (["trainer.max_steps=7"], (7, None)),
        (["trainer.max_epochs=null"], (4000, None)),
        (["trainer.max_epochs=3", "trainer.max_steps=null"], (None, 3)),
        (["trainer.max_epochs=3", "trainer.max_steps=7"], (7, 3)),
        (["trainer.max_steps=null"], (None, None)),
    ],
)
def test_of_steps_and_epochs_the_one_on_the_command_line_replaces_the_other(
    words: list[str], steps_and_epochs: tuple[Any, Any]
) -> None:
    assert lengths(*words) == steps_and_epochs


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (
            ["trainer.max_epochs=3", "trainer.max_steps=7"],
            "trainer.max_epochs: is 3, but trainer.max_steps is 7 as well; set one of them to null",
        ),
        (["trainer.max_steps=null"], "trainer.max_steps: is null, and so is trainer.max_epochs; set one of them"),
        (
            ["validation.every_epochs=1", "validation.every_steps=7"],
            "validation.every_epochs: is 1, but validation.every_steps is 7 as well; set one of them to null",
        ),
        (
            ["optim.warmup_steps=40", "trainer.max_steps=40"],
            "optim.warmup_steps: must be below trainer.max_steps=40, got 40; null takes a tenth of the steps, at most",
        ),
    ],
)
def test_a_length_that_is_no_length_is_refused(words: list[str], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_config(composed("train", "logger=none", *words))
    assert f"1 problem in the configuration\n  {fault}" in str(caught.value)


def test_a_split_alone_is_a_list_of_one() -> None:
    assert composed("evaluate", "splits=test").splits == ["test"]


def test_paths_become_absolute_and_names_on_the_hub_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    words = ["data.release=録.tar.gz", "model.name=openai/whisper-tiny", "seed=1", "-m", "resume=model", "checkpoint="]
    assert absolute_paths(words) == [
        *(f"data.release='{tmp_path}/録.tar.gz'", "model.name=openai/whisper-tiny", "seed=1", "-m"),
        *(f"resume={tmp_path}/model", "checkpoint="),
    ]
    assert absolute_paths(["model.name=model"]) == [f"model.name={tmp_path}/model"]
    assert absolute_paths(["data.release=[ja,'k o']"]) == [f"data.release=['{tmp_path}/ja','{tmp_path}/k o']"]
    assert "data.manifest" in PATHS


def test_settings_of_a_training_are_refused_by_an_evaluation() -> None:
    assert list(wrong_words("evaluate", ["trainer.max_epochs=3", "trainer.precision=32"])) == [
        "trainer.max_epochs: belongs to kikitori train; an evaluation takes no steps"
    ]


def test_a_glob_over_a_group_sets_its_key() -> None:
    assert [key for key, _ in overrides.settings("callbacks=glob(*)")] == ["callbacks"]
