"""Reads the tables of a corpus (.csv, .tsv, JSON), which may be malformed or hostile."""

import codecs
import csv
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, Any, AnyStr

from kikitori.runtime.errors import DataError

# A row and the number of its line, or for one array of JSON of its place in it.
Row = tuple[int, dict[str, Any]]
SEPARATORS = (",", ";", "\t", "|")
# Encodings that a table in Japanese may have. Text has hiragana or katakana only if it is decoded by the right one.
JAPANESE = {"Shift_JIS": "cp932", "EUC-JP": "euc_jp"}
KANA = range(0x3041, 0x3100)
# Characters of a line, and of a .json, whose one array may be a single line: a line is read as a whole.
MAX_LINE, MAX_JSON = 2**24, 2**30
# Lines by which an encoding is guessed.
GUESSED_LINES = 100


def read_rows(table: Path, needed: Sequence[str]) -> Iterator[Row]:
    """Yields the rows of a table by the suffix of its name: .csv, .tsv (both with a header), .jsonl or .json.

    Rows of empty cells, which spreadsheets append, are skipped. A row of JSON may be nested: the column `audio.path` is
    {"audio": {"path": ...}}. needed: columns by which the separator of a .csv is recognised.
    Raises DataError if the table cannot be parsed.
    """
    check_encoding(table)
    suffix = table.suffix.lower()
    if suffix == ".csv":
        # Strict, because a quotation mark that is never closed would silently swallow the rest of the table.
        with open_table(table, delimiter=_separator(table, needed), strict=True, skipinitialspace=True) as reader:
            yield from ((reader.line_num, row) for row in reader if any(row.values()))
    elif suffix == ".tsv":
        with open_table(table, delimiter="\t", quoting=csv.QUOTE_NONE) as reader:
            yield from ((reader.line_num, row) for row in reader if any(row.values()))
    else:
        yield from _json(table)


def is_json(table: Path) -> bool:
    """Whether the rows of a table are objects of JSON, by the suffix of its name."""
    return table.suffix.lower() in (".jsonl", ".json")


def cell(row: dict[str, Any], column: str) -> Any:
    """The value of a column; of a dotted one in nested rows. None if there is none."""
    if column in row:
        return row[column]
    value: Any = row
    for name in column.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def columns_of(row: dict[Any, Any], prefix: str = "") -> list[str]:
    """The names of a row's columns, dotted where it is nested."""
    names: list[str] = []
    for name, value in row.items():
        nested = isinstance(value, dict) and value
        names += columns_of(value, f"{prefix}{name}.") if nested else [f"{prefix}{name}"] * (name is not None)
    return names


@contextmanager
def open_table(table: Path, **dialect: Any) -> Iterator["csv.DictReader[str]"]:
    """Opens a .csv or .tsv as dicts. Surplus cells of a row are under the key None, missing cells have the value None.

    Bytes that are not UTF-8 are kept as surrogates, for `AudioFiles.clip` to reject. dialect: arguments of
    `csv.DictReader`. Raises DataError where the table cannot be parsed.
    """
    line = 0
    try:
        with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(_lines(file, table), **dialect)
            try:
                yield reader
            finally:
                line = reader.line_num
    except (csv.Error, OSError) as error:
        raise DataError(f"{table} cannot be read beyond line {line}: {error}; correct the table there") from error


def check_encoding(table: Path) -> None:
    """Raises DataError if a table was saved in another encoding than UTF-8, and names the one that it looks like.

    One damaged line, or a few among others that are not ASCII, do not count: `AudioFiles.clip` rejects each of them.
    """
    if found := _other_encoding(table):
        raise DataError(f"{table} is not UTF-8; it looks like {found}. Save it again as UTF-8 (in Excel: 'CSV UTF-8')")


def _other_encoding(table: Path) -> str | None:
    """The encoding that a table seems to have instead of UTF-8; None if it is UTF-8, or most of it."""
    with table.open("rb") as file:
        start = file.read(64)
        if start.startswith(b"PK\x03\x04"):
            return "a spreadsheet (.xlsx, .ods)"
        if start.startswith(b"\x1f\x8b"):
            return "gzip"
        # Every second byte of the header is zero, or with Japanese names of columns every second separator.
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or 4 * start.count(0) > len(start):
            return "UTF-16"
        file.seek(0)
        lines = foreign = 0
        sample, header = b"", b""
        for line in _lines(file, table):
            header = header or line
            if not line.isascii():
                lines += 1
                try:
                    line.decode()
                except UnicodeDecodeError:
                    foreign += 1
                    sample += line if foreign <= GUESSED_LINES else b""
    # A header in another encoding is the first in the sample.
    many = foreign > 1 and 2 * foreign >= lines
    return _guess(sample) if foreign and (many or sample.startswith(header)) else None


def _guess(data: bytes) -> str:
    """The name of the encoding that bytes seem to have, which are not UTF-8."""
    for name, codec in JAPANESE.items():
        text = data.decode(codec, errors="replace")
        if any(ord(character) in KANA for character in text) and 20 * text.count("\ufffd") < len(text):
            return name
    # Letters with accents stand alone between others; in Chinese and Korean text each character has two such bytes.
    runs = re.findall(rb"[\x80-\xff]+", data)
    return "Windows-1252 (Latin-1)" if 2 * sum(len(run) == 1 for run in runs) > len(runs) else "an older encoding"


def _separator(table: Path, needed: Sequence[str]) -> str:
    """The separator with which the header of a .csv has the needed columns, or else the most columns."""
    headers = {}
    for separator in SEPARATORS:
        with open_table(table, delimiter=separator, skipinitialspace=True) as reader:
            headers[separator] = reader.fieldnames or []
    return max(SEPARATORS, key=lambda s: (len(set(needed) & set(headers[s])), len(headers[s])))


def _json(table: Path) -> Iterator[Row]:
    """Yields the objects of a file with one per line, or of one array."""
    with table.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        first = next((line for line in _lines(file, table) if line.strip()), "")
        file.seek(0)
        if first.lstrip().startswith("["):
            text = file.read(MAX_JSON + 1)
            if len(text) > MAX_JSON:
                raise DataError(f"{table} has over {MAX_JSON:,} characters; write one object per line")
            whole = _parsed(text, table, "")
            yield from ((i, _object(row, table, f" item {i}")) for i, row in enumerate(whole, 1))
            return
        for number, line in enumerate(_lines(file, table), 1):
            if line.strip():
                place = f" line {number}"
                yield number, _object(_parsed(line, table, place), table, place)


def _lines(file: IO[AnyStr], table: Path) -> Iterator[AnyStr]:
    """Yields the lines of a table. Raises DataError for one that would fill the memory."""
    most = MAX_JSON if table.suffix.lower() == ".json" else MAX_LINE
    for number in count(1):
        line = file.readline(most)
        if len(line) == most:
            raise DataError(f"{table} line {number} has over {most:,} characters; correct the table there")
        if not line:
            return
        yield line


def _parsed(text: str, table: Path, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{table}{place} is not JSON: {error}; write one object per line") from error


def _object(row: Any, table: Path, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{table}{place} is not a JSON object; write one per line")
    return row
