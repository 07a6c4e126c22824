"""Reads your own recordings: a table (.csv, .tsv or .jsonl) with a path and a text column."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from kikitori.corpora.table_reader import file_clip, open_table
from kikitori.corpora.types import SPLITS, Clip, Corpus, Reject, Split
from kikitori.runtime.errors import DataError

# The names that a table may give its splits.
SPLIT_NAMES: dict[str, Split] = {"train": "train", "validation": "validation", "valid": "validation", "test": "test"}
SPLIT_NAMES |= {"val": "validation", "dev": "validation"}


def read(
    files: str | Mapping[str, str],
    path_column: str,
    text_column: str,
    split_column: str,
    speaker_column: str | None,
) -> Corpus:
    """Reads one table with a split column, or one table per split (train, validation and test).

    Paths in a table are relative to its folder and must stay below it.
    Raises DataError if a table or a column is missing, or a row names an unknown split.
    """
    tables: Mapping[str, str] = {"": files} if isinstance(files, str) else {k: v for k, v in files.items() if v}
    clips: list[Clip] = []
    rejects: list[Reject] = []
    for split, name in tables.items():
        table = Path(name).expanduser().absolute()
        needed = [path_column, text_column, *([] if split else [split_column])]
        for number, row in _rows(table, [*needed, *filter(None, [speaker_column])]):
            row_split = _split(split or row.get(split_column), table, number)
            path, text = row.get(path_column), row.get(text_column)
            if None in row or not isinstance(path, str) or not isinstance(text, str):
                rejects.append(Reject(ascii(path), row_split, "malformed row", f"{table.name} line {number}"))
                continue
            speaker = row.get(speaker_column) if speaker_column else None
            clip = file_clip(table.parent, path, row_split, text, None if speaker is None else str(speaker))
            if isinstance(clip, Clip):
                clips.append(clip)
            else:
                rejects.append(clip)
    return Corpus(f"manifest, {', '.join(Path(name).name for name in tables.values())}", clips, rejects)


def _split(name: object, table: Path, line: int) -> Split:
    if not isinstance(name, str) or name not in SPLIT_NAMES:
        raise DataError(
            f"{table} line {line}: split {name!r} is not one of {', '.join(SPLITS)}. Correct that row; a text that "
            "contains the table's separator must be quoted."
        )
    return SPLIT_NAMES[name]


def _rows(table: Path, needed: list[str]) -> Iterator[tuple[int, dict]]:
    """Yields line numbers and rows of a table. Raises DataError if the first row lacks a needed column."""
    if table.is_dir():
        raise DataError(f"data.manifest: {table} is a folder; give the .csv, .tsv or .jsonl file in it")
    if not table.is_file():
        raise DataError(f"data.manifest: {table} does not exist")
    reader = {".csv": _csv, ".tsv": _tsv, ".jsonl": _jsonl}.get(table.suffix.lower())
    if reader is None:
        raise DataError(f"data.manifest: {table} must end in .csv, .tsv or .jsonl")
    for count, (number, row) in enumerate(reader(table)):
        if count == 0 and (missing := [column for column in needed if column not in row]):
            raise DataError(
                f"{table} has no column {' or '.join(missing)}; it has: {', '.join(map(str, row))}. "
                "Name yours with data.path_column, data.text_column, data.split_column and data.speaker_column, or "
                "give one table per split: data.manifest={train: a.csv, validation: b.csv, test: c.csv}"
            )
        yield number, row


def _csv(table: Path) -> Iterator[tuple[int, dict]]:
    # Strict, because a quotation mark that is never closed would silently swallow the rest of the table.
    with open_table(table, strict=True) as reader:
        yield from ((reader.line_num, row) for row in reader)


def _tsv(table: Path) -> Iterator[tuple[int, dict]]:
    """Reads a .tsv without quoting, like those of Common Voice."""
    with open_table(table, delimiter="\t", quoting=csv.QUOTE_NONE) as reader:
        yield from ((reader.line_num, row) for row in reader)


def _jsonl(table: Path) -> Iterator[tuple[int, dict]]:
    with table.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{table} line {number} is not JSON: {error}; write one object per line") from error
            if not isinstance(row, dict):
                raise DataError(f"{table} line {number} is not a JSON object; write one per line")
            yield number, row
