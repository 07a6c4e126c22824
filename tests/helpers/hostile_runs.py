"""Run folders that somebody has changed: a good one, and mutations of every file that is read from it."""

import json
import os
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from run_folders import write_run, write_sweep

DEEP = "[" * 100_000
# Written as JSON, in place of any value.
VALUES: list[Any] = [
    *(None, True, 0, -1, 7, 2**31, 10**13, 10**30, 10**400, 0.5, -0.0, 1e308, -1e308, 1e-320),
    *(float("nan"), float("inf"), "", "x", "\ud800", "\x1b]52;c;eA==\x07\x1b[2J", "<script>alert(1)</script>"),
    *("../../x", "/etc/passwd", "\0", "ア" * 5000, "1²2", "${oc.env:HOME}", "a=b", [], {}, [[]], {"a": 1}),
    *([1, "x", None], {"": {"": {}}}, {"../x": {"cer": 1.0}}, [[[[[[[[[[]]]]]]]]]], {str(n): n for n in range(3000)}),
]
# In place of a whole file.
TEXTS = ["", "{", "[]", "null", "3", '"x"', DEEP, '{"a":' * 10_000, "\udcff", "{}" * 9, '{"status": "completed"}']
KINDS = ("pipe", "device", "link", "holes", "folder")


def good_run(folder: Path, number: int = 0) -> Path:
    """A completed run whose results.json has every part that training writes."""
    errors = number % 3
    write_run(
        folder,
        errors,
        {"seed": number, "optim": {"lr": 0.001}, "model": {"name": "micro", "language": "ja", "task": None}}
        | {"data": {"language": "ja", "global_batch_size": 8}, "trainer": {"max_steps": 20, "max_epochs": None}}
        | {"callbacks": {"early_stopping": {"patience": 3}}, "logger": {}, "keep": "all"},
        ["data=demo", "model=micro", f"seed={number}"],
        options=[],
        cwd=str(folder.parent),
        precision="32",
        checkpoint={"steps": 20, "best": "checkpoints/step-20.ckpt", "best_step": 20, "monitor": "val/cer", "value": 1},
        interruptions=[{"reason": "stopped by SIGTERM", "resumed": "2026-11-22T10:00:00", "step": 3}],
        disk={"checkpoints": 10**6},
        environment={"threads": 2, "deterministic": True, "cpu": "AVX2"},
        scored={"before": {"validation": "a1b2c3"}},
    )
    (folder / ".hydra").mkdir(exist_ok=True)
    (folder / ".hydra" / "overrides.yaml").write_text("- data=demo\n- model=micro\n")
    (folder / "train.log").write_text("a line\n")
    return folder


def mutated_run(folder: Path, rng: random.Random) -> Path:
    """A run of which one or two files were changed, by a value, by their text or by what kind of file they are."""
    good_run(folder, rng.randrange(4))
    write_sweep(folder.parent, {"number": 0, "folder": folder.name, "state": "failed", "reason": "", "log": ""})
    files = [folder / "results.json"] * 6 + sorted(folder.glob("predictions/*.jsonl"))
    files += [folder.parent / "sweep.json", folder / ".hydra" / "overrides.yaml", folder / ".lock"]
    for _ in range(rng.choice((1, 1, 2))):
        with suppress(ValueError, RecursionError, OSError, IndexError):  # it was made unreadable by the first
            _mutate(rng.choice(files), rng)
    if rng.random() < 0.05:
        os.utime(folder / "results.json", (10**12, 10**12), follow_symlinks=False)
    return folder


def _mutate(path: Path, rng: random.Random) -> None:
    how = rng.random()
    if path.is_file() and path.stat().st_size > 2**30:
        return
    if how < 0.1 or not path.is_file():
        replace(path, rng.choice(KINDS))
    elif how < 0.2 or path.suffix == ".yaml":
        bombs = [
            "x: &a [1]\ny: [*a, *a]",
            "- !!python/object/apply:os.mkdir [PWN_yaml]",
            "- " * 9000,
            "- {a: 2026-99-99}",
        ]
        path.write_bytes(rng.choice(TEXTS + bombs).encode(errors="surrogateescape"))
    elif path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        _change(rng.choice(rows), rng)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        value = json.loads(path.read_text())
        _change(value, rng)
        path.write_text(json.dumps(value))


def _change(value: Any, rng: random.Random) -> None:
    """Changes, adds or deletes one value anywhere."""
    node, key = rng.choice(list(places(value)))
    if rng.random() < 0.1:
        del node[key]
    elif isinstance(node, dict) and rng.random() < 0.15:
        node[rng.choice(["", "\ud800", "../x", "a.b", "\x1b[2J", "scores", "<b>"])] = rng.choice(VALUES)
    else:
        node[key] = rng.choice(VALUES)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each value as its container and its key there."""
    for key, item in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
        yield value, key
        if isinstance(item, dict | list):
            yield from places(item)


def replace(path: Path, kind: str) -> None:
    """Puts something else in place of a file: a pipe, a link, a file of 20 GB of holes, ..."""
    path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(20 * 2**30)
