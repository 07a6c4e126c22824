"""Rows of your own recordings: a table (.csv, .tsv or .jsonl) with a path and a text column."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from kikitori.clips import SPLITS, Clip, Corpus, Reject, Split, file_clip
from kikitori.errors import DataError

SPLIT_NAMES: dict[str, Split] = {"train": "train", "validation": "validation", "valid": "validation", "test": "test"}
SPLIT_NAMES |= {"val": "validation", "dev": "validation"}


def read(
    files: str | Mapping[str, str],
    path_column: str,
    text_column: str,
    split_column: str,
    speaker_column: str | None,
) -> Corpus:
    """One table with a split column, or a table for each of train, validation and test.

    Paths in a table are relative to its folder and stay below it.
    Raises DataError where a table, a column or a split is not there.
    """
    tables: Mapping[str, str] = {"": files} if isinstance(files, str) else {k: v for k, v in files.items() if v}
    clips: list[Clip] = []
    rejects: list[Reject] = []
    for split, name in tables.items():
        table = Path(name).expanduser()
        needed = [path_column, text_column] + ([] if split else [split_column])
        for number, row in _rows(table, needed):
            values = [row.get(column) for column in needed]
            named = _split(split or str(row.get(split_column)), table, number)
            if None in row or not all(isinstance(value, str) for value in values):
                rejects.append(Reject(ascii(values[0]), named, "malformed row", f"{table.name} line {number}"))
                continue
            speaker = row.get(speaker_column) if speaker_column else None
            row_clip = file_clip(table.parent, str(values[0]), named, str(values[1]), speaker and str(speaker))
            if isinstance(row_clip, Clip):
                clips.append(row_clip)
            else:
                rejects.append(row_clip)
    return Corpus(f"manifest, {', '.join(Path(name).name for name in tables.values())}", clips, rejects)


def _split(name: str, table: Path, line: int) -> Split:
    if name not in SPLIT_NAMES:
        raise DataError(f"{table} line {line}: split {name!r} is none of {', '.join(SPLITS)}")
    return SPLIT_NAMES[name]


def _rows(table: Path, needed: list[str]) -> Iterator[tuple[int, dict]]:
    """Line numbers and rows of a table, after a check that the needed columns are in its first row."""
    if not table.is_file():
        raise DataError(f"data.manifest: {table} does not exist")
    reader = {".csv": _csv, ".tsv": _tsv, ".jsonl": _jsonl}.get(table.suffix)
    if reader is None:
        raise DataError(f"data.manifest: {table} must end in .csv, .tsv or .jsonl")
    for count, (number, row) in enumerate(reader(table)):
        if count == 0 and (missing := [column for column in needed if column not in row]):
            raise DataError(
                f"{table} has no column {' or '.join(missing)}; it has: {', '.join(map(str, row))}. "
                "Name yours with data.path_column, data.text_column and data.split_column, or give a table a split: "
                "data.manifest={train: a.csv, validation: b.csv, test: c.csv}"
            )
        yield number, row


def _csv(table: Path) -> Iterator[tuple[int, dict]]:
    with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        yield from ((reader.line_num, row) for row in reader)


def _tsv(table: Path) -> Iterator[tuple[int, dict]]:
    """Unquoted, as Common Voice writes them."""
    with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        yield from ((reader.line_num, row) for row in reader)


def _jsonl(table: Path) -> Iterator[tuple[int, dict]]:
    with table.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{table} line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise DataError(f"{table} line {number} is not a JSON object")
            yield number, row
