"""Reads clips with the engine of an export, in a process of its own: a wrong file may end it.

`read_back` starts this module as a program, which prints one JSON line per clip. Its memory is freed when it ends, and
the seconds of all engines are measured alike.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from kikitori.runtime.errors import ExportFailed
from kikitori.runtime.files import read_json, write_json
from kikitori.runtime.processes import PARENT, exit_with_launcher

# torch is imported in the process once that would end with its parent, since it takes seconds.
if TYPE_CHECKING:
    from kikitori.corpora.types import Speech
    from kikitori.exports.formats import Format

# The languages of the clips, next to their samples.
CLIPS = "clips.json"
# Bytes of what the engine prints in which the reason of its end is looked for.
LAST_BYTES = 10_000
REASON = re.compile("assert|error|fail|exception", re.IGNORECASE)


@dataclass(frozen=True)
class Reading:
    """The text of a clip, and the seconds that it took."""

    text: str
    seconds: float


def read_back(
    of: "Format", folder: Path, clips: "Sequence[Speech]", task: str, advance: Callable[[], None]
) -> list[Reading]:
    """Reads the first 30 s of each clip with the engine of an export.

    advance: called after each clip. Raises ExportFailed if the engine's process ends before it has read them all.
    """
    with tempfile.TemporaryDirectory(prefix="kikitori-") as place, tempfile.TemporaryFile() as printed:
        _write_clips(Path(place), clips)
        readings = []
        with subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, of.name, str(folder.absolute()), place, task],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=printed,
            # No engine has a reason to download anything.
            env={**os.environ, PARENT: str(os.getpid()), "HF_HUB_OFFLINE": "1"},
        ) as process:
            try:
                for line in process.stdout or ():
                    readings.append(Reading(**json.loads(line)))
                    advance()
                code = process.wait()
            finally:
                process.kill()
        if code or len(readings) < len(clips):
            read = f"after {len(readings)} of {len(clips)} clips"
            raise ExportFailed(f"to={of.name}: the engine {_end(code)} {read}: {_reason(printed)}")
    return readings


def _write_clips(place: Path, clips: "Sequence[Speech]") -> None:
    for number, clip in enumerate(clips):
        np.save(place / f"{number}.npy", clip.samples.numpy())
    write_json(place / CLIPS, {"languages": [clip.language for clip in clips]})


def _end(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def _reason(printed: IO[bytes]) -> str:
    """The last line that an engine printed about an error, or else its last line."""
    printed.seek(max(0, printed.seek(0, os.SEEK_END) - LAST_BYTES))
    lines = [line.strip() for line in printed.read().decode(errors="replace").splitlines() if line.strip()]
    return next(filter(REASON.search, reversed(lines)), lines[-1] if lines else "it printed nothing")


def _read_clips(name: str, folder: Path, place: Path, task: str) -> Iterator[Reading]:
    import torch

    from kikitori.exports.formats import find_format

    languages = read_json(place / CLIPS)["languages"]
    for language, numbers in groupby(range(len(languages)), languages.__getitem__):
        read = find_format(name).load(folder, language, task)
        for number in numbers:
            samples = torch.from_numpy(np.load(place / f"{number}.npy"))
            start = time.perf_counter()
            text = read(samples)
            yield Reading(text, time.perf_counter() - start)


def main() -> None:
    """Reads the clips of a folder and prints one JSON line for each; what the engine prints goes to stderr."""
    exit_with_launcher()
    results = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    name, folder, place, task = sys.argv[1:]
    for reading in _read_clips(name, Path(folder), Path(place), task):
        print(json.dumps(vars(reading)), file=results, flush=True)


if __name__ == "__main__":
    main()
