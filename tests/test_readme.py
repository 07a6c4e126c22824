"""The documents against the repository: lengths, links, commands, keys, and the Python lines of the README."""

import ast
import re
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import dropwhile
from pathlib import Path
from string import Template
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

import kikitori
from kikitori.cli import main
from kikitori.runtime.paths import CONF

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "kikitori"
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "experiments/*/*.md", "benchmarks/*.md", "src/**/*.md")
    for path in ROOT.glob(pattern)
)
ENGLISH, JAPANESE = ROOT / "README.md", ROOT / "README.ja.md"
HYDRA_COMMANDS = ("train", "evaluate", "prepare", "guard", "average", "export")
# Choices that add keys; a key in a sentence has to exist with one of them.
CONTEXTS = (
    ("train", []),
    ("train", ["data=manifest"]),
    ("train", ["data=hub", "logger=none"]),
    ("train", ["trainer=ddp", "callbacks=early_stopping"]),
    ("train", ["adapter=adalora"]),
    ("train", ["hydra/launcher=slurm"]),
    ("train", ["hydra/sweeper=optuna"]),
    ("guard", []),
    ("average", []),
    ("export", []),
    ("train", ["model=micro", "model.timestamps=true", "joining=windows"]),
    ("evaluate", []),
)


def fenced(text: str) -> list[str]:
    """Sentences and fenced blocks in turn; a block begins with the rest of its opening line."""
    return re.split(r"^```", text, flags=re.MULTILINE)


def blocks(path: Path, *languages: str) -> list[str]:
    """The fenced blocks of some languages in a document."""
    parts = [part.partition("\n") for part in fenced(path.read_text(encoding="utf-8"))[1::2]]
    return [code for language, _, code in parts if language in languages]


def prose(path: Path) -> str:
    """A document without its fenced blocks."""
    return "".join(fenced(path.read_text(encoding="utf-8"))[::2])


def shell_lines(path: Path) -> Iterator[list[str]]:
    """The words of each command in a document's shell blocks, with their variables expanded."""
    assignment = re.compile(r'^([A-Z_0-9]+)="(.*?)"$', flags=re.DOTALL | re.MULTILINE)
    for block in blocks(path, "sh", ""):
        values = {name: " ".join(value.split()) for name, value in assignment.findall(block)}
        for line in assignment.sub("", block).replace("\\\n", " ").splitlines():
            words = shlex.split(expanded(expanded(line, values), {}), comments=True)
            yield list(dropwhile(lambda word: re.fullmatch(r"[A-Z_]+=.*", word), words))


def expanded(line: str, values: dict[str, str]) -> str:
    """A line with its variables replaced, those without a value by the word PATH."""
    return Template(line).substitute(defaultdict(lambda: "PATH", values))


def commands() -> list[tuple[str, list[str]]]:
    """Every kikitori command in the documents, with the document's name."""
    found = []
    for path in DOCUMENTS:
        for words in shell_lines(path):
            if "kikitori" in words:
                found.append((path.relative_to(ROOT).as_posix(), words[words.index("kikitori") + 1 :]))
    return found


def first_value(word: str) -> str:
    """An override with the first of the values that it sweeps over."""
    parsed = OverridesParser.create().parse_override(word)
    if not parsed.is_sweep_override():
        return word
    key = parsed.input_line.partition("=")[0]
    if parsed.is_interval_sweep():
        return f"{key}={parsed.value().start}"
    return f"{key}={next(parsed.sweep_string_iterator())}"


@cache
def fault(command: str, overrides: tuple[str, ...]) -> str:
    """What is wrong with the overrides of a command, or an empty string."""
    try:
        with initialize_config_dir(str(CONF.resolve()), version_base="1.3", job_name=command):
            compose(command, list(map(first_value, overrides)), return_hydra_config=True)
    except HydraException as error:
        return str(error)
    return ""


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def links(path: Path) -> list[str]:
    """The targets of a document's links, addresses left out."""
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)) if "://" not in target]


def without_comments(block: str, language: str) -> str:
    """A block with each comment at a line's end removed."""
    pattern = r"\s+#.*$" if language == "sh" else r"\s{2,}#.*$"
    return re.sub(pattern, "", block, flags=re.MULTILINE)


def test_the_readme_has_at_most_a_thousand_words() -> None:
    assert len(ENGLISH.read_text(encoding="utf-8").split()) <= 1000


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file_and_to_a_heading(path: Path) -> None:
    for link in links(path):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in map(slug, headings), link


def test_every_page_of_docs_is_in_its_index() -> None:
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= set(links(ROOT / "docs" / "README.md"))


@pytest.mark.parametrize("language", ["sh", "python"])
def test_both_readmes_have_the_same_code(language: str) -> None:
    english, japanese = ([without_comments(b, language) for b in blocks(p, language)] for p in (ENGLISH, JAPANESE))
    assert english
    assert english == japanese


def test_both_readmes_have_the_same_order() -> None:
    def outline(path: Path) -> list[list[str]]:
        """Heading levels, fences, images and the figures of tables, in their order."""
        lines = path.read_text(encoding="utf-8").splitlines()
        marks = [re.match(r"#+(?= )|```\w*|!\[", line) for line in lines]
        figures = [re.findall(r"\d+\.\d+", line) if line.startswith("|") else [] for line in lines]
        return [[*([mark[0]] if mark else []), *row] for mark, row in zip(marks, figures, strict=True) if mark or row]

    assert outline(ENGLISH) == outline(JAPANESE)
    assert set(links(ENGLISH)) - {"README.ja.md"} == set(links(JAPANESE)) - {"README.md"}


def test_the_tests_that_documents_name_exist() -> None:
    named = [
        name
        for path in DOCUMENTS
        for name in re.findall(r"[\w/]+/test_[a-z0-9_]+\.py", path.read_text(encoding="utf-8"))
    ]
    assert len(named) > 25
    assert not [name for name in named if not (ROOT / "tests" / name.removeprefix("tests/")).exists()]


def test_the_documents_name_many_commands() -> None:
    """Guards the checks below against a pattern that finds nothing."""
    assert len(commands()) > 30


@pytest.mark.parametrize(("document", "words"), [c for c in commands() if c[1][:1] and c[1][0] in HYDRA_COMMANDS])
def test_the_keys_of_every_command_exist(document: str, words: list[str]) -> None:
    command, *rest = words
    if command in main.MODELS:
        rest = main._models(command, rest)
    options = [word for word in rest if word.startswith("-")]
    assert set(options) <= {"-m", "--help"}, words
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    assert not fault(command, tuple(overrides)), f"{document}: {shlex.join(words)}"


@pytest.mark.parametrize("command", ["transcribe", "compare", "push"])
def test_the_options_of_every_command_exist(command: str) -> None:
    done = subprocess.run([sys.executable, "-m", "kikitori", command, "--help"], capture_output=True, text=True)
    used = {word for _, words in commands() if words[:1] == [command] for word in words if word.startswith("--")}
    assert used
    assert all(option in done.stdout for option in used), used


def keys_in_sentences() -> list[tuple[str, str]]:
    """Every `key=value` in sentences and tables; not where keys are old, generated or Python's."""
    found = set()
    others = {"CHANGELOG.md", "configuration.md", "python.md"}
    for path in [path for path in DOCUMENTS if path.name not in others and "experiments" not in path.parts]:
        for code in re.findall(r"`([^`]+)`", prose(path)):
            words = shlex.split(re.sub(r"<[^>]*>|…", "PATH", code)) if code.count("'") % 2 == 0 else []
            named = [word for word in words if re.fullmatch(r"[a-z_]+([./][a-z_]+)*=[^=]*", word)]
            if named == words or words[:1] == ["kikitori"]:
                found |= {(path.name, word) for word in named if not word.endswith("=True")}
    return sorted(found)


@pytest.mark.parametrize(("document", "word"), keys_in_sentences())
def test_the_keys_in_sentences_exist(document: str, word: str) -> None:
    word = re.sub(r"=$", "=null", word)
    if re.fullmatch(r"(model|data|experiment|sweep|trainer|logger|callbacks)=null", word):
        return  # a group, named without a choice
    assert any(not fault(command, (*given, word)) for command, given in CONTEXTS), f"{document}: {word}"


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    for path in DOCUMENTS:
        named = re.findall(r"(?:`|^)make ([a-z-]+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert set(named) <= targets, path.name


def test_the_architecture_lists_every_file() -> None:
    (tree,) = [block for block in blocks(ROOT / "docs" / "architecture.md", "text") if "kikitori/" in block]
    folders: list[str] = []
    listed = set()
    for line in tree.splitlines():
        bars, _, entry = line.partition("── ")
        name = entry.split()[0] if entry else ""
        if name:
            depth = (len(bars) - 1) // 4
            folders = folders[:depth]
            if name.endswith("/"):
                folders.append(name.rstrip("/"))
            else:
                listed.add("/".join([*folders, name]))
    found = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.parent.rglob("*")
        if path.suffix in (".py", ".js", ".css", ".html")
        and path.name != "__init__.py"
        and "__pycache__" not in path.parts
        and not any(part.endswith(".egg-info") for part in path.parts)
    }
    assert listed - {"kikitori/__init__.py"} == found


def test_the_table_of_faults_is_the_one_that_make_chaos_writes() -> None:
    before, _, rest = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").partition("<!-- chaos: begin -->")
    table, end, after = rest.partition("<!-- chaos: end -->")
    assert end
    assert "chaos:" not in before + after
    header, _, *rows = [line for line in table.splitlines() if line.startswith("|")]
    sources = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "tests" / "chaos").glob("*.py")]
    texts = [n.value for tree in sources for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    known = tuple(text for text in texts if isinstance(text, str) and len(text) > len("bad audio"))
    assert header in known
    assert rows
    assert [row for row in rows if not row.removeprefix("| ").startswith(known)] == []


def test_the_public_names_are_documented() -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    table = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    assert set(kikitori.__all__) <= {name for cell in table for name in re.findall(r"\w+", cell)}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_python_lines_use_public_names(path: Path) -> None:
    code = "\n".join(blocks(path, "python"))
    compile(code, path.name, "exec")
    assert set(re.findall(r"\bkikitori\.(\w+)\(", code)) <= set(kikitori.__all__)


def test_the_corpus_of_the_python_page_can_be_read(tmp_path: Path) -> None:
    code = next(block for block in blocks(ROOT / "docs" / "python.md", "python") if "class Folder" in block)
    names: dict[str, Any] = {"__name__": "mine"}
    exec(code, names)
    (tmp_path / "train").mkdir()
    (tmp_path / "train/a.wav").touch()
    (tmp_path / "train/a.txt").write_text("一", encoding="utf-8")
    corpus = names["Folder"](str(tmp_path)).read()
    assert [(clip.name, clip.split, clip.text) for clip in corpus.clips] == [("train/a.wav", "train", "一")]


@pytest.mark.slow
def test_the_python_lines_of_the_readme_run(tmp_path: Path) -> None:
    (code,) = blocks(ENGLISH, "python")
    script = tmp_path / "lines.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().splitlines()[-1].startswith("{'cer': 0.3333")
