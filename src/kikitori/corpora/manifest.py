"""Reads your own recordings: a list (.csv, .tsv, .jsonl or .json) with a path and a text column."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from math import isfinite
from pathlib import Path
from typing import Any

from kikitori.corpora.audio_files import AudioFiles
from kikitori.corpora.table_reader import cell, columns_of, is_json, read_rows
from kikitori.corpora.types import SPLITS, Clip, Corpus, Reject, Split, stated_language
from kikitori.runtime.errors import DataError, shortened
from kikitori.runtime.files import expanded

# The names that a list may give its splits.
SPLIT_NAMES: dict[str, Split] = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLIT_NAMES |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
# A list may lack the split column of this name; one of another name was named by the user and must be there.
SPLIT_COLUMN = "split"
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
# Columns that a message names, so that rows which were read as columns do not fill the screen.
NAMED = 20
# Files of a data folder of Kaldi or ESPnet.
KALDI = ("wav.scp", "segments", "utt2spk")


@dataclass(frozen=True)
class Columns:
    """The names of a list's columns. start, end: of a part of a recording, in seconds. language: of what is said, by
    Whisper's code, another code or a name. None: there is none.
    """

    path: str = "path"
    text: str = "text"
    split: str | None = SPLIT_COLUMN
    speaker: str | None = None
    start: str | None = None
    end: str | None = None
    language: str | None = None


def read(
    files: str | Mapping[str, str | None],
    columns: Columns,
    splits: Sequence[Split] = SPLITS,
    roots: Sequence[str] = (),
) -> Corpus:
    """Reads one list for all splits, or one list per split (train, validation and test).

    The rows of one list without a split column are training clips. splits: those to read. roots: other folders than a
    list's own in which its recordings may lie.
    Raises DataError if a list or a column is missing, or a row names an unknown split, or no language of Whisper's.
    """
    given = {"": files} if isinstance(files, str) else files
    lists = {key and _split(key, "data.manifest"): expanded(name) for key, name in given.items() if name}
    rows: list[Clip | Reject] = []
    absent: dict[Split, str] = {}
    for split, path in lists.items():
        if not split or split in splits:
            found, why = _read_list(path.absolute(), columns, split or None, AudioFiles(path.absolute().parent, roots))
            rows += found
            absent |= why
    if "" not in lists:
        absent = {split: "data.manifest names no list for it" for split in SPLITS if split not in lists}
    clips = [row for row in rows if isinstance(row, Clip) and row.split in splits]
    rejects = [row for row in rows if isinstance(row, Reject) and row.split in splits]
    return Corpus(f"manifest, {', '.join(path.name for path in lists.values())}", clips, rejects, absent=absent)


def _read_list(
    table: Path, columns: Columns, split: Split | None, files: AudioFiles
) -> tuple[list[Clip | Reject], dict[Split, str]]:
    """The rows of one list, and the splits that it lacks with the reason.

    split: of all rows; None if the list may have a column of them.
    """
    _check_file(table)
    names = _names(table, columns)
    if not names:
        return [], {}
    _check_columns(table, columns, names)
    absent: dict[Split, str] = {}
    if split is None and columns.split not in names:
        split = "train"
        reason = (
            f"{table} has no column {columns.split or SPLIT_COLUMN}, only {shortened(names, NAMED)}. Name it with "
            "data.split_column, or say of which split the list is, as in 'data.manifest={test: LIST}'"
        )
        absent = {"validation": reason, "test": reason}
    rows = read_rows(table, [columns.path, columns.text])
    return [_read_row(row, columns, split, files, f"{table.name} line {line}") for line, row in rows], absent


def _names(table: Path, columns: Columns) -> list[str]:
    """The names of a list's columns: in JSON those of every row, which may leave out what it has no value for."""
    rows = read_rows(table, [columns.path, columns.text])
    described = rows if is_json(table) else islice(rows, 1)
    return list(dict.fromkeys(chain.from_iterable(columns_of(row) for _, row in described)))


def _read_row(
    row: dict[str, Any], columns: Columns, split: Split | None, files: AudioFiles, place: str
) -> Clip | Reject:
    path, text = cell(row, columns.path), cell(row, columns.text)
    if split is None:
        named = cell(row, columns.split or SPLIT_COLUMN)
        if named is None or not str(named).strip():
            return Reject(str(path), "train", "in no split", place)
        split = _split(named, place)
    part = _part(row, columns)
    if None in row or not isinstance(path, str) or not isinstance(text, str) or isinstance(part, str):
        return Reject(ascii(path), split, "malformed row", f"{place}: {part}" if isinstance(part, str) else place)
    speaker = cell(row, columns.speaker) if columns.speaker else None
    clip = files.clip(path, split, text, None if speaker is None else str(speaker), part)
    if columns.language is None or isinstance(clip, Reject):
        return clip
    return replace(clip, language=stated_language(cell(row, columns.language), f"{place}: {columns.language}"))


def _part(row: dict[str, Any], columns: Columns) -> tuple[float, float | None] | str | None:
    """The start and end of a part of a recording; None for all of it. The text says what is wrong with a row."""
    bounds: list[float | None] = []
    for column in (columns.start, columns.end):
        value = cell(row, column) if column else None
        try:
            bounds.append(None if value in (None, "") else float(value))
        except (TypeError, ValueError):
            return f"{column} is not a number"
    start, end = bounds[0] or 0.0, bounds[1]
    if not (isfinite(start) and start >= 0 and (end is None or (isfinite(end) and end > start))):
        return f"from {start:g} to {end:g} s" if end is not None else f"from {start:g} s"
    return None if bounds == [None, None] else (start, end)


def _split(name: object, place: str) -> Split:
    known = SPLIT_NAMES.get(str(name).strip().lower())
    if known is None:
        raise DataError(
            f"{place}: split {name!r} is not one of {', '.join(SPLITS)}. Correct it; a text that contains the table's "
            "separator must be quoted"
        )
    return known


def _check_file(table: Path) -> None:
    """Raises DataError if a list is no file of a known kind."""
    if table.is_dir():
        inside = sorted(path.name for path in table.iterdir() if path.suffix.lower() in SUFFIXES)
        if any((table / name).exists() for name in KALDI):
            raise DataError(
                f"data.manifest: {table} is a data folder of Kaldi; make a .csv of its wav.scp, text and segments with "
                "the columns path, text, start and end (docs/data.md has a script)"
            )
        raise DataError(
            f"data.manifest: {table} is a folder; give the list in it: {', '.join(inside) or 'it has none'}"
        )
    if not table.is_file():
        raise DataError(f"data.manifest: {table} does not exist")
    if table.suffix.lower() not in SUFFIXES:
        raise DataError(f"data.manifest: {table} must end in {', '.join(SUFFIXES)}; save a spreadsheet as CSV UTF-8")


def _check_columns(table: Path, columns: Columns, names: Sequence[str]) -> None:
    """Raises DataError if a list lacks a column that it must have."""
    needed = [columns.path, columns.text, columns.speaker, columns.start, columns.end, columns.language]
    needed += [columns.split] if columns.split != SPLIT_COLUMN else []
    if missing := [name for name in needed if name is not None and name not in names]:
        header = "One object of JSON is one row" if is_json(table) else "The first line of a .csv or .tsv names them"
        raise DataError(
            f"{table} has no column {' or '.join(missing)}; it has: {shortened(names, NAMED)}. Name yours with "
            f"{', '.join(f'data.{key}_column' for key in asdict(columns))}. {header}"
        )
