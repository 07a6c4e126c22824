"""Reads a Common Voice release: the archive as downloaded, the extracted folder, or its language folder.

There are two layouts. Scripted Speech has a table per split and the recordings in clips/. Spontaneous Speech has one
table, ss-corpus-ja.tsv, with a split column and also recordings that nobody has transcribed yet, which are in audios/.
"""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import Any

from kikitori.corpora.archive import unpack
from kikitori.corpora.audio_files import AudioFiles
from kikitori.corpora.table_reader import check_encoding, open_table
from kikitori.corpora.types import SPLITS, Clip, Corpus, Reason, Reject, Split, stated_language
from kikitori.runtime.errors import DataError
from kikitori.runtime.files import expanded
from kikitori.runtime.paths import check_owner

AUDIO = ("clips", "audios")
SPONTANEOUS_TABLE = "ss-corpus-"
# The tables that make validation and test, unless they are trained on.
SCORED: Mapping[str, Split] = {"dev": "validation", "test": "test"}
SCRIPTED = ("client_id", "path", "sentence")
SPONTANEOUS = ("client_id", "audio_file", "transcription", "split", "duration_ms")
# The split of Spontaneous Speech of which a clip is that is in none.
UNASSIGNED = "unassigned"


@dataclass(frozen=True)
class Row:
    """A clip as listed. table: train, dev, test, validated, ... of which the split is made."""

    table: str
    split: Split
    path: str
    text: str
    speaker: str
    duration_s: float | None


def read(
    release: str,
    language: str,
    train_splits: Sequence[str],
    cache: Path,
    splits: Sequence[Split] = SPLITS,
    roots: Sequence[str] = (),
    allow_shared_speakers: bool = False,
) -> Corpus:
    """Reads the splits of one language.

    train_splits: the tables that make the training split, without the clips and speakers of dev and test. dev or test
    may be among them; it is then no split of its own. cache: the folder to unpack an archive into. splits: those to
    read. roots: folders outside of the release in which links may end. allow_shared_speakers: keeps those speakers.
    Releases 5 to 27 differ in columns; those used here are in all of them.
    Raises DataError if the release, the language or a column is missing.
    """
    folder = find_language(expanded(release), language, cache)
    tables: dict[str, Split] = {**SCORED, **dict.fromkeys(train_splits, "train")}
    absent = {split: f"data.train_splits contains {table}" for table, split in SCORED.items() if table in train_splits}
    if "train" not in splits:  # otherwise all, because clips of validation and test are not trained on
        tables = {table: split for table, split in tables.items() if split in splits}
    listed = folder / f"{SPONTANEOUS_TABLE}{language}.tsv"
    if listed.is_file():
        rows, audio = spontaneous_rows(listed, tables), "audios"
        reasons = {split: f"{listed} has no row whose split is {table}" for table, split in tables.items()}
    else:
        reasons = _missing_tables(folder, tables)
        tables = {table: split for table, split in tables.items() if split not in reasons}
        rows, audio = scripted_rows(folder, language, tables), "clips"
    given = expanded(release)
    files = AudioFiles(folder / audio, roots, within=given if given.is_dir() else folder)
    found = sorted(_divide(rows, files, allow_shared_speakers), key=_split_order)
    clips = [row for row in found if isinstance(row, Clip) and row.split in splits]
    rejects = [row for row in found if isinstance(row, Reject) and row.split in splits]
    return Corpus(f"Common Voice, {_name(folder)}", clips, rejects, _name(folder), {**reasons, **absent})


def read_several(
    releases: Sequence[str],
    train_splits: Sequence[str],
    cache: Path,
    splits: Sequence[Split] = SPLITS,
    roots: Sequence[str] = (),
    allow_shared_speakers: bool = False,
) -> Corpus:
    """Reads releases, or folders, of one language each; each clip states its own, and its name begins with it.

    The speakers of splits are kept apart within each language. Arguments: see `read`.
    Raises DataError as `read`, for a release of several languages, and for a language twice or that Whisper lacks.
    """
    if not releases:
        raise DataError("data.release is an empty list; give a release, or the folder of each language")
    clips: list[Clip] = []
    rejects: list[Reject] = []
    names: dict[str, str] = {}
    absent: dict[Split, str] = {}
    for release in releases:
        locale = only_language(expanded(release), cache)
        if locale in names:
            raise DataError(f"data.release lists the language {locale} twice; leave out {release}")
        code = stated_language(locale, f"data.release: the language of {release}")
        corpus = read(release, locale, train_splits, cache, splits, roots, allow_shared_speakers)
        names[locale], absent = str(corpus.release), {**corpus.absent, **absent}
        clips += [replace(clip, name=f"{locale}/{clip.name}", language=code) for clip in corpus.clips]
        rejects += [replace(reject, name=f"{locale}/{reject.name}") for reject in corpus.rejects]
    together = ", ".join(names.values())
    return Corpus(f"Common Voice, {together}", clips, rejects, together, absent)


def only_language(release: Path, cache: Path) -> str:
    """The code of the language of a release or a folder that holds one. Raises DataError for several, or none."""
    folders = language_folders(release, cache)
    if len(folders) != 1:
        names = ", ".join(sorted(filter(None, folders))) or "no language folder, which has a folder clips or audios"
        raise DataError(f"data.release: {release} holds {names}; list the folder of each language")
    ((name, folder),) = folders.items()
    return name or _locale(folder) or folder.name


def find_language(release: Path, language: str, cache: Path) -> Path:
    """Returns the folder of one language: its tables and recordings. An archive is unpacked into the cache, once."""
    languages = {name or language: folder for name, folder in language_folders(release, cache).items()}
    if language not in languages:
        names = ", ".join(sorted(languages)) or "no language folder, which has a folder clips or audios"
        raise DataError(f"data.language={language}: {release} holds {names}. Set data.language, or data.release.")
    return languages[language]


def language_folders(release: Path, cache: Path) -> dict[str, Path]:
    """The language folders of a release by their names; "" for the release itself, whose name may be any.

    An archive is unpacked into the cache, once.
    """
    if not release.exists():
        raise DataError(
            f"data.release={release} does not exist. Download a release from Mozilla Data Collective "
            "and pass its .tar.gz, or the folder it unpacks to."
        )
    if release.name in AUDIO and release.is_dir():
        release = release.parent
    if release.is_file():
        stat = release.stat()
        key = sha256(f"{release.name} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
        target = cache / "releases" / key
        if not target.exists():
            unpack(release, target)
        check_owner(target)
        release = target
    inside = ("", "*/", "*/*/")
    found = [f.parent for depth in inside for name in AUDIO for f in sorted(release.glob(depth + name)) if f.is_dir()]
    # Of two folders of one language the upper one, which is the last here.
    return {_language(f) or ("" if f == release else f.name): f for f in reversed(found)}


def _language(folder: Path) -> str | None:
    """The language of a folder of Spontaneous Speech, by the name of its table."""
    names = [table.stem.removeprefix(SPONTANEOUS_TABLE) for table in folder.glob(f"{SPONTANEOUS_TABLE}*.tsv")]
    return names[0] if names else None


def _locale(folder: Path) -> str | None:
    """The language that the tables of Scripted Speech state; None if they state none."""
    for table in sorted(folder.glob("*.tsv")):
        with open_table(table, delimiter="\t", quoting=csv.QUOTE_NONE) as reader:
            locale = next((row.get("locale") for row in reader), None)
            if locale and re.fullmatch(r"[A-Za-z]{2,3}(-[A-Za-z]{2,4})?", locale):
                return locale
    return None


def scripted_rows(folder: Path, language: str, tables: Mapping[str, Split]) -> Iterator[Row | Reject]:
    """Yields the rows of some tables of Scripted Speech."""
    listed = durations_s(folder / "clip_durations.tsv")
    for name, split in tables.items():
        table = folder / f"{name}.tsv"
        for place, row in _read_table(table, SCRIPTED):
            if not _is_whole(row):
                yield Reject(ascii(row["path"] or ""), split, "malformed row", place)
                continue
            if (locale := row.get("locale") or language) != language:
                raise DataError(f"data.language={language}, but {table} is of language {locale}. Set data.language.")
            yield Row(name, split, row["path"], row["sentence"], row["client_id"], listed.get(row["path"]))


def spontaneous_rows(table: Path, tables: Mapping[str, Split]) -> Iterator[Row | Reject]:
    """Yields the rows of Spontaneous Speech that are in some splits. Others are rejects of the training split."""
    for place, row in _read_table(table, SPONTANEOUS):
        name = (row["split"] or "").strip() or UNASSIGNED
        split: Split = tables.get(name, "train")
        if not _is_whole(row):
            yield Reject(ascii(row["audio_file"] or ""), split, "malformed row", place)
        elif not row["transcription"].strip():
            yield Reject(row["audio_file"], split, "not transcribed", place)
        elif name not in tables:
            yield Reject(row["audio_file"], split, "in no split", name)
        else:
            seconds = _seconds(row["duration_ms"])
            yield Row(name, split, row["audio_file"], row["transcription"], row["client_id"], seconds)


def _read_table(table: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the rows of one table, with their places. Tables have no quoting: a quotation mark is part of a text."""
    check_encoding(table)
    with open_table(table, delimiter="\t", quoting=csv.QUOTE_NONE) as reader:
        names = reader.fieldnames or []
        if missing := set(columns) - set(names):
            raise DataError(
                f"{table} has no column {' or '.join(sorted(missing))}; it has: {', '.join(names) or 'none'}. "
                "Download the release again, or read a table of your own with data=manifest."
            )
        for row in reader:
            yield f"{table.name} line {reader.line_num}", row


def _is_whole(row: Mapping[Any, Any]) -> bool:
    """Whether a row has all cells. One with too few may end inside its sentence."""
    return None not in row and None not in row.values()


def _divide(rows: Iterator[Row | Reject], files: AudioFiles, allow_shared_speakers: bool) -> Iterator[Clip | Reject]:
    """Yields the clips of the rows; rejects for training rows that are in validation or test, or whose speakers are."""
    seen: set[str] = set()
    scored: set[str] = set()
    speakers: set[str] = set()
    # Training last, when the clips and speakers of the others are known.
    for row in sorted(rows, key=lambda row: row.split == "train"):
        reason: Reason | None = None
        if isinstance(row, Reject):
            yield row
            continue
        if row.split != "train":
            scored.add(row.path)
            speakers |= {row.speaker} - {""}
        elif row.path in scored:
            reason = "in validation or test"
        elif row.speaker in speakers and not allow_shared_speakers:
            reason = "of a speaker in validation or test"
        elif row.path in seen:
            reason = "listed twice"
        seen.add(row.path)
        if reason:
            yield Reject(row.path, row.split, reason, f"{row.table}.tsv")
        else:
            clip = files.clip(row.path, row.split, row.text, row.speaker)
            yield replace(clip, duration_s=row.duration_s) if isinstance(clip, Clip) else clip


def _split_order(row: Clip | Reject) -> int:
    return SPLITS.index(row.split)


def _missing_tables(folder: Path, tables: Mapping[str, Split]) -> dict[Split, str]:
    """The splits without a table, with the reason. Raises DataError if only some tables of a split are missing."""
    missing: dict[Split, str] = {}
    held = ", ".join(sorted(path.name for path in folder.glob("*.tsv"))) or "no tables"
    for split in dict.fromkeys(tables.values()):
        names = [name for name, of in tables.items() if of == split]
        gone = [name for name in names if not (folder / f"{name}.tsv").is_file()]
        if gone:
            missing[split] = f"{folder / gone[0]}.tsv does not exist; the release holds {held}"
            if gone != names:
                raise DataError(f"{missing[split]}. See data.train_splits")
    return missing


def durations_s(table: Path) -> dict[str, float | None]:
    """Reads the listed duration of each clip, from a table that most releases have.

    It reveals clips that were truncated between two frames, which look complete.
    """
    listed: dict[str, float | None] = {}
    if table.is_file():
        with open_table(table, delimiter="\t", quoting=csv.QUOTE_NONE) as reader:
            for row in reader:
                with suppress(KeyError):  # another table, or a row without a name
                    listed[row["clip"]] = _seconds(row["duration[ms]"])
    return listed


def _seconds(milliseconds: str | None) -> float | None:
    """None for what is no duration; the clip is then not compared with it."""
    try:
        seconds = float(milliseconds or "") / 1000
    except ValueError:
        return None
    return seconds if 0 < seconds < inf else None


def _name(folder: Path) -> str:
    """Returns cv-corpus-27.0-2026-09-09/ja instead of the whole path, which may contain a user name."""
    return "/".join(folder.parts[-2:]) if folder.parent.name.startswith("cv-corpus") else folder.name
