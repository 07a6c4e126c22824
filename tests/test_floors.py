"""A file imports only from floors below its own, so that whoever reads one never has to look up."""

import ast
from pathlib import Path

import kikitori

SOURCE = Path(kikitori.__file__).parent
FLOORS = [
    {"cuts", "durable", "errors", "progress", "secrecy"},
    {"paths", "sound", "targets"},
    {
        *("archive", "audio", "clips", "decoders", "guard", "optim", "processes", "ranks", "report", "sampler"),
        *("saving", "stopping", "text"),
    },
    {"card", "greedy", "resuming", "runs", "study", "sweep", "window"},
    {"pruning"},
    {"front_end"},
    {"whisper"},
    {"collate", "common_voice", "config", "decode", "hub", "manifest", "metrics", "selection", "store"},
    {"differences", "leaderboard", "loss", "player", "states"},
    {"clip_changes", "importance", "listing"},
    {"figures"},
    {"page"},
    {"board", "callbacks", "dataset", "module", "monitor", "tracking"},
    {"checkpoints", "datamodule", "trainer"},
    {"fitting", "run"},
    {"scoring"},
    {"experiment"},
    {"launcher"},
    {"search"},
    {"compare", "evaluate", "prepare", "rank", "train", "transcribe"},
    {"cli"},
    {"__main__"},
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
FILES = {path.stem: path for path in SOURCE.glob("*.py") if path.stem != "__init__"}


def imported(path: Path) -> set[str]:
    """Names of kikitori's modules that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "kikitori":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kikitori."):
            found.add(str(node.module).split(".")[1])
    return found


def imports(path: Path) -> set[str]:
    """Top-level names of everything that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {str(node.module).split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}


def test_every_file_has_a_floor() -> None:
    assert set(FILES) == set(FLOOR)


def test_imports_go_down() -> None:
    upward = [f"{n} imports {i}" for n, p in FILES.items() for i in imported(p) if FLOOR[i] >= FLOOR[n]]
    assert not upward


def test_only_text_knows_sudachi() -> None:
    assert [name for name, path in FILES.items() if "sudachipy" in imports(path)] == ["text"]
