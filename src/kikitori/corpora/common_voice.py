"""Reads a Common Voice release: the archive as downloaded, the extracted folder, or its language folder."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from kikitori.corpora.archive import unpack
from kikitori.corpora.table_reader import file_clip, open_table
from kikitori.corpora.types import Clip, Corpus, Reject, Split
from kikitori.runtime.errors import DataError


def read(release: str, language: str, train_splits: Sequence[str], cache: Path) -> Corpus:
    """Reads the official splits of one language.

    train_splits: names of the tables that make the training split. cache: the folder to unpack an archive into.
    Releases 5 to 27 differ in columns; those used here (client_id, path, sentence) are in all of them.
    Raises DataError if the release, the language, a table or one of these columns is missing.
    """
    folder = find_language(Path(release).expanduser(), language, cache)
    tables: list[tuple[Split, str]] = [("train", name) for name in train_splits]
    tables += [("validation", "dev"), ("test", "test")]
    clips: list[Clip] = []
    rejects: list[Reject] = []
    listed = durations_s(folder / "clip_durations.tsv")
    for split, name in tables:
        for row in read_table(folder / f"{name}.tsv", folder / "clips", split, language):
            if isinstance(row, Clip):
                clips.append(replace(row, duration_s=listed.get(row.name)))
            else:
                rejects.append(row)
    return Corpus(f"Common Voice, {_name(folder)}", clips, rejects, release=_name(folder))


def find_language(release: Path, language: str, cache: Path) -> Path:
    """Returns the folder of one language, with its tables and clips/. An archive is unpacked into the cache, once."""
    if not release.exists():
        raise DataError(
            f"data.release={release} does not exist. Download a release from Mozilla Data Collective "
            "and pass its .tar.gz, or the folder it unpacks to."
        )
    given = release
    if release.is_file():
        stat = release.stat()
        key = sha256(f"{release.name} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
        target = cache / "releases" / key
        if not target.exists():
            unpack(release, target)
        release = target
    if (release / "clips").is_dir():
        return release
    found = sorted({table.parent for depth in ("*", "*/*") for table in release.glob(f"{depth}/train.tsv")})
    for folder in found:
        if folder.name == language:
            return folder
    languages = ", ".join(folder.name for folder in found) or "no language folder at all"
    raise DataError(f"data.language={language}: {given} holds {languages}. Set data.language, or data.release.")


def read_table(table: Path, clips: Path, split: Split, language: str) -> Iterator[Clip | Reject]:
    """Yields the rows of one table. The tables have no quoting: a quotation mark is part of the sentence."""
    if not table.is_file():
        raise DataError(f"{table} does not exist: the release holds {_tables(table.parent)}. See data.train_splits.")
    with open_table(table, delimiter="\t", quoting=csv.QUOTE_NONE) as reader:
        columns = reader.fieldnames or []
        if missing := {"client_id", "path", "sentence"} - set(columns):
            raise DataError(
                f"{table} has no column {' or '.join(sorted(missing))}; it has: {', '.join(columns) or 'none'}. "
                "Download the release again, or read a table of your own with data=manifest."
            )
        for row in reader:
            # A row with too few cells may end inside its sentence.
            if None in row or None in row.values():
                yield Reject(ascii(row["path"] or ""), split, "malformed row", f"{table.name} line {reader.line_num}")
                continue
            if (locale := row.get("locale") or language) != language:
                raise DataError(f"data.language={language}, but {table} is of language {locale}. Set data.language.")
            yield file_clip(clips, row["path"], split, row["sentence"], row["client_id"])


def durations_s(table: Path) -> dict[str, float]:
    """Reads the listed duration of each clip, from a table that most releases have.

    It reveals clips that were truncated between two frames, which look complete.
    """
    listed: dict[str, float] = {}
    if table.is_file():
        with open_table(table, delimiter="\t", quoting=csv.QUOTE_NONE) as reader:
            for row in reader:
                with suppress(KeyError, TypeError, ValueError):  # a clip without a duration is not checked
                    listed[row["clip"]] = float(row["duration[ms]"]) / 1000
    return listed


def _tables(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.glob("*.tsv"))) or "no tables"


def _name(folder: Path) -> str:
    """Returns cv-corpus-27.0-2026-09-09/ja instead of the whole path, which may contain a user name."""
    return "/".join(folder.parts[-2:]) if folder.parent.name.startswith("cv-corpus") else folder.name
