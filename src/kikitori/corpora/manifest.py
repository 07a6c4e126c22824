"""Rows of your own recordings: a table (.csv, .tsv or .jsonl) with a path and a text column."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from kikitori.corpora.table_reader import file_clip, open_table
from kikitori.corpora.types import SPLITS, Clip, Corpus, Reject, Split
from kikitori.runtime.errors import DataError

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
        table = Path(name).expanduser().absolute()
        needed = [path_column, text_column, *([] if split else [split_column])]
        for number, row in _rows(table, [*needed, *filter(None, [speaker_column])]):
            named = _split(split or row.get(split_column), table, number)
            path, text = row.get(path_column), row.get(text_column)
            if None in row or not isinstance(path, str) or not isinstance(text, str):
                rejects.append(Reject(ascii(path), named, "malformed row", f"{table.name} line {number}"))
                continue
            speaker = row.get(speaker_column) if speaker_column else None
            row_clip = file_clip(table.parent, path, named, text, None if speaker is None else str(speaker))
            if isinstance(row_clip, Clip):
                clips.append(row_clip)
            else:
                rejects.append(row_clip)
    return Corpus(f"manifest, {', '.join(Path(name).name for name in tables.values())}", clips, rejects)


def _split(name: object, table: Path, line: int) -> Split:
    if not isinstance(name, str) or name not in SPLIT_NAMES:
        raise DataError(
            f"{table} line {line}: split {name!r} is none of {', '.join(SPLITS)}. Mend that row; a text that holds the "
            "table's separator must be quoted."
        )
    return SPLIT_NAMES[name]


def _rows(table: Path, needed: list[str]) -> Iterator[tuple[int, dict]]:
    """Line numbers and rows of a table, after a check that the needed columns are in its first row."""
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
                "give a table a split: data.manifest={train: a.csv, validation: b.csv, test: c.csv}"
            )
        yield number, row


def _csv(table: Path) -> Iterator[tuple[int, dict]]:
    # Strict, because a quotation mark that is never closed would swallow the rest of the table in silence.
    with open_table(table, strict=True) as reader:
        yield from ((reader.line_num, row) for row in reader)


def _tsv(table: Path) -> Iterator[tuple[int, dict]]:
    """Unquoted, as Common Voice writes them."""
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
                raise DataError(f"{table} line {number} is not JSON: {error}; give one JSON object a line") from error
            if not isinstance(row, dict):
                raise DataError(f"{table} line {number} is not a JSON object; give one a line")
            yield number, row
