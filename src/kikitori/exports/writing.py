"""Writes exports: refused if impossible, complete or not at all under their names."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kikitori.exports.formats import Format, find_format
from kikitori.model.whisper import Whisper
from kikitori.runtime.errors import ConfigError, ExportFailed, ModelError, one_line, remedy_of
from kikitori.runtime.files import sync_folder

# What engines take for granted: Whisper's window, and at least the vocabulary of the multilingual models.
WINDOW_S, VOCABULARY = 30, 51_865
# Ends of hidden names: of an export that is being written, and of the one that it replaces.
PARTIAL, EARLIER = ".partial", ".earlier"
# Bytes of a weight by precision; 4 for others.
BYTES = {"float16": 2, "bfloat16": 2, "int8": 1, "int8_float16": 1}


def chosen(names: Sequence[str], precisions: Sequence[str]) -> list[tuple[Format, str]]:
    """Each format with each precision; without any, each with its own first one.

    Raises ConfigError for what does not exist, for a precision that a format does not have, and for an engine that is
    not installed.
    """
    if not names:
        raise ConfigError("to: not set; pass formats: kikitori export MODEL --to ctranslate2,ggml")
    found = []
    for of in map(find_format, dict.fromkeys(names)):
        if unknown := [precision for precision in precisions if precision not in of.precisions]:
            raise ConfigError(f"quantize={unknown[0]}: {of.name} has {', '.join(of.precisions)}")
        found += [(of, precision) for precision in dict.fromkeys(precisions or of.precisions[:1])]
    if missing := [fault for of in dict.fromkeys(of for of, _ in found) if (fault := of.missing())]:
        raise ConfigError("; ".join(missing))
    return found


def check_model(whisper: Whisper, name: str) -> None:
    """Raises ModelError for a model that no other engine reads. name: as the user gave it."""
    window_s, vocabulary = whisper.processor.window_s, whisper.model.config.vocab_size
    if window_s != WINDOW_S or vocabulary < VOCABULARY:
        raise ModelError(
            f"checkpoint={name} has a window of {window_s:g} s and {vocabulary:,} tokens; other engines read windows "
            f"of {WINDOW_S} s with {VOCABULARY:,} tokens or more. Export a model that began with a pretrained Whisper"
        )


def check_space(folder: Path, weights: int, formats: Sequence[tuple[Format, str]]) -> None:
    """Raises ExportFailed if a disk is too full for the exports, and for the model in float32 meanwhile.

    weights: how many there are.
    """
    sizes = [of.disk.get(precision, BYTES.get(precision, 4)) for of, precision in formats]
    needed = weights * (4 + sum(sizes))
    if (free := shutil.disk_usage(folder).free) < needed:
        raise ExportFailed(
            f"{folder}: {free / 1e9:.1f} GB are free, and about {needed / 1e9:.1f} GB needed; free space"
        )


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder that is removed when the block ends. What a kill left of an earlier one is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def restore(place: Path) -> None:
    """Removes what a killed process left of its exports in a folder, and gives earlier ones their names again."""
    for earlier in place.glob(f".*{EARLIER}"):
        folder = place / earlier.name[1 : -len(EARLIER)]
        if folder.exists():
            shutil.rmtree(earlier, ignore_errors=True)
        else:
            earlier.rename(folder)
    for partial in place.glob(f".*{PARTIAL}"):
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder that replaces `folder` when the block ends without an error; until then it is unchanged.

    After a kill between the two renames, the earlier one has the name .NAME.earlier: see `restore`.
    """
    earlier = folder.with_name(f".{folder.name}{EARLIER}")
    with scratch_folder(folder.with_name(f".{folder.name}{PARTIAL}")) as partial:
        yield partial
        _flush(partial)
        if folder.exists():
            folder.rename(earlier)
        partial.rename(folder)
        shutil.rmtree(earlier, ignore_errors=True)
    sync_folder(folder.parent)


def _flush(folder: Path) -> None:
    """Flushes the files of a folder to the disk, where they survive a crash of the machine."""
    for path in folder.rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def write_errors(what: str) -> Iterator[None]:
    """Turns errors of a disk that is full or cannot be written to, and of an engine that is installed but cannot be
    imported, into ExportFailed. what: is written in the block.
    """
    try:
        yield
    except Exception as error:  # torch, safetensors and the engines' own writers have errors of their own
        remedy = remedy_of(error) or _full_disk(error) or _broken_engine(error)
        if remedy is None:
            raise
        raise ExportFailed(f"{what}: {remedy}") from error


def _broken_engine(error: Exception) -> str | None:
    is_broken = isinstance(error, ImportError)
    return f"its engine cannot be imported: {one_line(error)}; install it again" if is_broken else None


def _full_disk(error: Exception) -> str | None:
    # In the words of safetensors and of torch's writer.
    is_full = any(words in str(error) for words in ("No space left", "file write failed", "unexpected pos"))
    return "no space left on the disk; free space" if is_full else None


def folder_bytes(folder: Path) -> int:
    """The bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
