"""Formats by name, and what each of them needs."""

import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from kikitori.exports.formats import FORMATS, Format, find_format
from kikitori.runtime.errors import ConfigError

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
ENGINES = {"ctranslate2", "pywhispercpp", "onnxruntime", "whisper", "mlx", "mlx_whisper"}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_found_without_its_engine_and_names_its_extra(name: str) -> None:
    loaded = ENGINES & sys.modules.keys()
    found = find_format(name)
    assert (found.name, ENGINES & sys.modules.keys()) == (name, loaded)
    assert found.extra is None or found.extra in PYPROJECT["project"]["optional-dependencies"]
    assert found.precisions
    assert found is import_module(FORMATS[name]).FORMAT


def test_a_misspelt_format_is_answered_with_the_closest_one() -> None:
    with pytest.raises(ConfigError, match=r"to=ctranslate: must be one of ctranslate2, .*; did you mean ctranslate2\?"):
        find_format("ctranslate")
    with pytest.raises(ConfigError, match=r"to=whisper\.cpp: must be one of .*; did you mean ggml\?"):
        find_format("whisper.cpp")


def test_a_missing_engine_names_its_extra() -> None:
    absent = Format("ggml", "ggml", ("json", "no_such_engine"), ("float16",), print, print)  # type: ignore[arg-type]
    assert absent.missing() == "to=ggml: needs no_such_engine: pip install 'kikitori[ggml]'"


@pytest.mark.parametrize("name", FORMATS)
def test_the_document_lists_the_precisions(name: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "exports.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
    assert row.split(" | ")[2] == ", ".join(find_format(name).precisions)
