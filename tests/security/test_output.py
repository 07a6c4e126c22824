"""Texts of any origin on their way out: terminal, log, JSON, CSV, Markdown and plots."""

import csv
import io
import json
import logging
import re
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from run_folders import write_run

from kikitori.cli.main import main
from kikitori.compare import formats
from kikitori.compare.leaderboard import build_leaderboards
from kikitori.compare.plots import figures
from kikitori.compare.search_plots import search_figures
from kikitori.runs.model_card import plain_text
from kikitori.runtime.console import Terminal, as_json
from kikitori.runtime.errors import ConfigError, describe_error, one_line
from kikitori.runtime.text import make_output_safe, print_traceback, printable, printable_line

# A clipboard, a title, a cleared screen, an 8-bit sequence, a line that is overwritten, a reversed text.
SEQUENCES = [
    "\x1b]52;c;cm0=\x07",
    "\x1b]0;title\x07",
    "\x1b[2J",
    "\x9b2J",
    "a\rb",
    "\u202egpj.exe",
    "\u2028",
    "\x7f\x08",
]
MARKUPS = ["<a href='https://evil.example'>x</a>", "[x](https://evil.example)", "![x](https://evil.example/p.png)"]
MARKUPS += ["https://evil.example", "www.evil.example", "a|b|c", "`", "x\n| a | b |\n", "[a]: https://evil.example"]
FORMULAS = ["=1+1", "+1", "-1+cmd|' /C calc'!A0", "@SUM(1)", " =1", "\t=1", "=HYPERLINK(1)", "＝1", "＋1"]
# What acts on a terminal. Line breaks are lines, and the codes are those of `CONTROL`, listed here once more.
ACTS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def hostile(random: Random) -> str:
    """A text of several hostile parts, as a run or a corpus may hold it."""
    return "".join(
        random.choice([*SEQUENCES, *MARKUPS, *FORMULAS, "カレー", "\n"]) for _ in range(random.randint(1, 4))
    )


def hostile_runs(folder: Path, seed: int) -> Path:
    """Two sweeps' worth of runs with hostile names, values and errors, one of which failed."""
    random = Random(seed)
    for i in range(3):
        key = random.choice(["note", "model.name", hostile(random)])
        write_run(
            folder / f"{i}-{hostile(random).replace('/', '')[:40]}",
            errors=i,
            config={"seed": i, "data": {"language": "ja"}, "logger": {}, key: hostile(random)},
            overrides=[f"note={hostile(random)}"],
            data={"corpus": hostile(random), "language": "ja", "splits": {"validation": {"digest": "a"}}},
            git={"commit": hostile(random), "dirty": False},
            cost={"device": hostile(random)},
        )
    write_run(folder / "failed", status="failed", error=hostile(random), log=hostile(random))
    return folder


@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(s, marks=pytest.mark.long) for s in range(12, 300))])
def test_no_form_of_a_comparison_acts_on_what_shows_it(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    tables, failures = build_leaderboards([str(hostile_runs(tmp_path, seed))])
    formats.print_tables(tables, failures)
    forms = [capsys.readouterr().out, formats.markdown(tables, failures), formats.as_csv(tables, failures)]
    for text in [*forms, formats.as_json(tables, failures)]:
        assert not ACTS.search(text)
    assert not re.search(r"<|(?<!\\)\]\(|(?<!\\)!\[|(?<!:\\)//e|\[a\]:|www\.e", forms[1])
    cells = [cell for row in csv.reader(io.StringIO(forms[2])) for cell in row]
    assert not [cell for cell in cells if cell.strip().startswith(tuple("=+-@＝＋")) and not is_number(cell)]
    assert json.loads(formats.as_json(tables, failures))["not_completed"]
    for table in tables:
        for figure in (*figures(table, failures), *search_figures(table)):
            for key, text in texts(figure.variants):
                assert (
                    "<" not in re.sub("<br>|<extra></extra>", "", text) if key.endswith("template") else "<" not in text
                )


def is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def texts(value: Any, key: str = "") -> list[tuple[str, str]]:
    """All texts of a figure with their keys, without the names of its variants, which are no part of the plot."""
    if isinstance(value, dict):
        return [found for name, part in value.items() for found in texts(part, str(name))]
    if isinstance(value, list | tuple):
        return [found for part in value for found in texts(part, key)]
    return [(key, value)] if isinstance(value, str) else []


def test_swept_texts_are_texts_on_every_kind_of_plot(tmp_path: Path) -> None:
    for i in range(14):
        write_run(tmp_path / str(i), config={"seed": 0, "a": f"{MARKUPS[0]}{i}", "b": f"<b>{i % 3}", "c": i})
    tables, _ = build_leaderboards([str(tmp_path)])
    found = [figure for table in tables for figure in search_figures(table) if figure.variants]
    assert len(found) >= 3
    assert not [text for figure in found for key, text in texts(figure.variants) if "<a" in text or "<b>" in text]
    assert "&lt;a href" in str([figure.variants for figure in found])


@pytest.mark.parametrize("text", SEQUENCES)
def test_errors_logs_and_tracebacks_are_printable(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    factory = logging.getLogRecordFactory()
    for name in ("excepthook", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    make_output_safe()
    try:
        assert sys.excepthook is print_traceback
        handler = logging.StreamHandler(shown := io.StringIO())
        log = logging.Logger("test")
        log.addHandler(handler)
        try:
            raise ValueError(f"in {text}")
        except ValueError as error:
            log.exception("failed: %s", text)
            sys.excepthook(type(error), error, error.__traceback__)
            seen = [str(ConfigError(text)), describe_error(error), one_line(error)]
    finally:
        logging.setLogRecordFactory(factory)
    printed = shown.getvalue() + capsys.readouterr().err
    assert printed.count("Traceback") == 2
    for line in [printed, *seen]:
        assert not ACTS.search(line)


@pytest.mark.parametrize("text", SEQUENCES)
def test_the_messages_with_which_a_command_ends_are_printable(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"a {text}").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["kikitori", "train", f"hydra.run.dir='a {text}'"])
    monkeypatch.setattr(logging, "setLogRecordFactory", lambda factory: None)
    for name in ("excepthook", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, str)
    assert not ACTS.search(ended.value.code)


@pytest.mark.parametrize("text", SEQUENCES)
def test_only_rich_itself_controls_the_terminal(text: str) -> None:
    screen = Terminal(file=io.StringIO(), force_terminal=True, color_system="standard", width=60)
    screen.print(f"a {text}", style="bold", markup=False, highlight=False)
    shown = screen.file.getvalue()
    assert shown.startswith("\x1b[1m")
    assert not ACTS.search(shown.replace("\x1b[1m", "").replace("\x1b[0m", ""))


def test_other_texts_are_shown_as_they_are() -> None:
    for text in ("カレーを食べます。", "naïve – “quoted” [10.1, 12.3] a_b *c* #1 < 2", "C:/x y", "🍛"):
        assert printable(text) == printable_line(text) == text
        assert json.loads(as_json({"text": text})) == {"text": text}
        assert plain_text(text).replace("&lt;", "<") == text
        assert formats.csv_cell(text) == text
    assert printable("a\nb") == "a\nb"
    assert printable_line("a\nb") == "a\\nb"
    assert [formats.csv_cell(value) for value in (None, -1, 0.5, True, "-1")] == [None, -1, 0.5, True, "'-1"]


def test_a_semicolon_which_begins_a_cell_in_some_countries_begins_no_formula() -> None:
    assert formats.csv_cell("a; =1+1;b-c") == "a;' =1+1;b-c"


def test_json_keeps_its_values() -> None:
    for text in SEQUENCES:
        assert json.loads(as_json([text, {"text": text}], indent=2)) == [text, {"text": text}]
