"""Saves recordings with corrected texts as a corpus: FLAC files and a list, which `data=manifest` reads.

A recording that is saved again replaces its row, so that a correction can be corrected.
"""

import csv
import io
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import soundfile
from filelock import FileLock
from numpy.typing import NDArray

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.corpora.manifest import Columns
from kikitori.corpora.table_reader import read_rows
from kikitori.model.processor import Processor, control_token_in
from kikitori.runtime.errors import DataError
from kikitori.runtime.files import atomic_write, is_regular, read_text, write_text
from kikitori.runtime.text import CONTROL

LIST = "metadata.csv"
# The columns that data=manifest reads unless others are named.
COLUMNS = [Columns.path, Columns.text]
# Marks of the direction of writing: nobody sees or says them, and they come with text that is copied.
DIRECTION = re.compile(r"[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def check_folder(folder: Path) -> None:
    """Raises DataError if recordings cannot be saved in a folder, which need not exist yet."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"--save {folder} is a file; give a folder")
    _rows(folder)


def one_line_of(text: str) -> str:
    """A text that somebody typed, in one line, and without marks of direction."""
    return " ".join(DIRECTION.sub("", text).split())


def text_fault(text: str, processor: Processor) -> str:
    """Why a text cannot be one of a training clip, as a sentence; empty if it can."""
    if not text:
        return "The text is empty: write what is said."
    if CONTROL.search(text):
        return "The text holds control characters: type it again."
    if token := control_token_in(text, processor):
        return f"The text holds {token}, which is a control token of the model: leave it out."
    if fault := processor.label_fault(processor.encode(text)):
        return f"The text is too long for one clip ({fault}): save a shorter recording."
    return ""


def save_recording(folder: Path, samples: NDArray[np.int16], text: str) -> int:
    """Writes (samples,) at 16 kHz and the row of their text, and returns how many rows there are.

    text: in one line. Raises DataError if the list in the folder is another one, OSError if the disk is full.
    """
    # Readable by their owner alone: they are somebody's voice.
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = f"{sha256(samples.tobytes()).hexdigest()[:16]}.flac"
    with FileLock(folder / ".lock"):
        rows = [*(row for row in _rows(folder) if row[0] != name), [name, text]]
        is_new = not (folder / name).exists()
        with atomic_write(folder / name) as file:
            soundfile.write(file, samples, SAMPLE_RATE, format="FLAC")
        try:
            _write(folder / LIST, rows)
        except OSError:
            if is_new:
                (folder / name).unlink()
            raise
    return len(rows)


def _rows(folder: Path) -> list[list[str]]:
    """The rows of the list; none if it does not exist."""
    path = folder / LIST
    if not path.exists() and not path.is_symlink():
        return []
    if not is_regular(path):
        raise DataError(f"{path} is a link, or no file; choose another folder with --save")
    rows = [row for _, row in read_rows(path, COLUMNS)]
    other = next((list(row) for row in rows if list(row) != COLUMNS), None)
    if not rows and (line := read_text(path).strip("\ufeff \r\n")) not in ("", ",".join(COLUMNS)):
        other = [line]  # a row without a header, perhaps
    if other:
        raise DataError(
            f"{path} has the columns {', '.join(map(str, other))}, not {' and '.join(COLUMNS)} alone; choose another "
            "folder with --save"
        )
    return [[row[column] for column in COLUMNS] for row in rows]


def _write(path: Path, rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    write_text(path, text.getvalue())
