"""Reads an audio dataset on the Hugging Face Hub, or a dataset's folder in the Hub's layout."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import datasets.data_files
import huggingface_hub
from datasets import Audio, Dataset, disable_progress_bars, load_dataset

from kikitori.audio.formats import AudioError
from kikitori.corpora.audio_files import is_inside
from kikitori.corpora.types import OUTSIDE_DATASET, SPLITS, Clip, Corpus, Split, stated_language
from kikitori.runtime.console import shows_bars
from kikitori.runtime.errors import DataError

# Datasets that were moved off the Hub begin with this name.
MOVED_PREFIX = "mozilla-foundation/common_voice"


def read(
    name: str,
    config: str | None,
    revision: str | None,
    splits: Mapping[str, str | None],
    audio_column: str,
    text_column: str,
    speaker_column: str | None,
    language_column: str | None = None,
    needed: Sequence[Split] = SPLITS,
    other_roots: Sequence[str] = (),
) -> Corpus:
    """Reads a dataset by its name and configuration; `splits` maps train, validation and test to the dataset's splits.

    needed: the splits to read; one that is mapped to None is absent. other_roots: folders outside of the dataset in
    which its recordings may lie. A token for a private dataset comes from the environment (HF_TOKEN) only. The audio is
    decoded by kikitori and not by `datasets`, whose errors do not name the clip.
    Raises DataError if the dataset cannot be loaded, has moved, or lacks a split or column.
    """
    _check_name(name)
    if not shows_bars():
        disable_progress_bars()
    roots = [*_allowed_roots(name), *other_roots]
    clips: list[Clip] = []
    absent = {split: f"data.splits.{split} is null" for split in SPLITS if not splits.get(split)}
    for split in needed:
        if own := splits.get(split):
            rows = _load_split(name, config, revision, own, roots)
            columns = (audio_column, text_column, speaker_column, language_column)
            clips += _split_clips(rows, name, split, *columns, roots)
    shown = Path(name).resolve().name if Path(name).is_dir() else name
    return Corpus(f"hub, {shown}" + (f" {config}" if config else ""), clips, [], absent=absent)


def _check_name(name: str) -> None:
    if name.startswith(MOVED_PREFIX):
        raise DataError(
            f"data.name={name}: Mozilla's Common Voice left the Hub in October 2025. Download a release from Mozilla "
            "Data Collective and pass data=common_voice data.release=/path/to/cv-corpus-27.0-ja.tar.gz"
        )


def _allowed_roots(name: str) -> list[Path | str]:
    """Returns the folders in which a row may name a file: the dataset's own folder and the download caches."""
    own = [name] if Path(name).is_dir() else []
    return [datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE, *own]


def _load_split(
    name: str, config: str | None, revision: str | None, split: str, roots: Sequence[Path | str]
) -> Dataset:
    try:
        with _without_torchcodec(), _own_files_only(name, roots):
            return load_dataset(name, config, split=split, revision=revision)
    except Exception as error:  # the Hub's client, its HTTP layer and the builders raise errors of many classes
        raise DataError(
            f"data.name={name}, configuration {config}, split {split} cannot be loaded: "
            f"{type(error).__name__}: {error.__cause__ or error}\n"
            "  Check the three names (data.name, data.config, data.splits), the network, and HF_TOKEN for a private "
            "dataset. If it has no such split: data.splits.NAME=null data.held_out=0.1"
        ) from error


def _split_clips(
    rows: Dataset,
    name: str,
    split: Split,
    audio_column: str,
    text_column: str,
    speaker_column: str | None,
    language_column: str | None,
    roots: Sequence[Path | str],
) -> Iterator[Clip]:
    """Yields the clips of one split, without reading their audio."""
    others = (speaker_column, language_column)
    if missing := {audio_column, text_column, *filter(None, others)} - set(rows.column_names):
        raise DataError(
            f"data.name={name} has no column {' or '.join(sorted(missing))}; "
            f"it has: {', '.join(rows.column_names)}. "
            "Set data.audio_column, data.text_column, data.speaker_column and data.language_column."
        )
    try:
        recordings = rows.select_columns(audio_column).cast_column(audio_column, Audio(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise DataError(f"data.audio_column={audio_column} of {name} holds no audio: {error}") from error
    # As Arrow's values: as images or videos, `datasets` would open the files and addresses that a column names.
    values = rows.with_format("arrow")
    texts, speakers, languages = (
        values.select_columns(column)[:][column].to_pylist() if column else [None] * len(rows)
        for column in (text_column, *others)
    )
    for index, (text, speaker, language) in enumerate(zip(texts, speakers, languages, strict=True)):
        if not isinstance(text, str | None):
            raise DataError(f"data.text_column={text_column} of {name} holds {type(text).__name__}, not text")
        yield Clip(
            name=f"{split}/{index:06d}",
            split=split,
            text=(text or "").strip(),
            identity=f"{rows._fingerprint} {index}",
            source=partial(_read_recording, recordings, index, audio_column, roots),
            speaker=None if speaker is None else str(speaker),
            language=stated_language(language, f"{name}, row {index + 1} of {split}: {language_column}")
            if language_column
            else None,
        )


def _read_recording(recordings: Dataset, index: int, column: str, roots: Sequence[Path | str]) -> Path | bytes:
    """Returns the bytes of a row's recording, or its file. Raises AudioError for a file outside of `roots`."""
    recording = recordings[index][column] or {}
    if recording.get("bytes"):
        return recording["bytes"]
    if not recording.get("path"):
        return b""
    if not is_inside(recording["path"], roots):
        raise AudioError(OUTSIDE_DATASET)
    return Path(os.path.realpath(recording["path"]))


@contextmanager
def _own_files_only(name: str, roots: Sequence[Path | str]) -> Iterator[None]:
    """Refuses a dataset whose README names files that are not its own: other addresses, or files outside of `roots`."""
    original = datasets.data_files.resolve_pattern

    def is_own(place: str) -> bool:
        on_the_hub = not Path(name).is_dir() and re.match(rf"hf://datasets/{re.escape(name)}([@/]|$)", place)
        return "::" not in place and bool(on_the_hub or ("://" not in place and is_inside(place, roots)))

    def resolve_pattern(pattern: str, base_path: str, *settings: Any, **more: Any) -> list[str]:
        is_absolute = pattern.startswith("/") or "://" in pattern or "::" in pattern
        places = [base_path, pattern if is_absolute else f"{base_path}/{pattern}"]
        # What the pattern leads to is only looked up if it may be; then links are followed.
        may_be_looked_up = ".." not in pattern and all(map(is_own, places))
        found = original(pattern, base_path, *settings, **more) if may_be_looked_up else []
        if not may_be_looked_up or not all(map(is_own, found)):
            raise DataError(f"its README names {pattern}, which is not a file of the dataset")
        return found

    datasets.data_files.resolve_pattern = resolve_pattern
    try:
        yield
    finally:
        datasets.data_files.resolve_pattern = original


@contextmanager
def _without_torchcodec() -> Iterator[None]:
    """Lets a folder of recordings be loaded without torchcodec, which datasets 5 needs even to store their paths."""
    original = Audio.encode_example

    def encode_example(self: Audio, value: Any) -> dict:
        recording = {"path": value} if isinstance(value, str) else value
        if not isinstance(recording, dict) or "array" in recording:
            return original(self, value)
        return {"bytes": recording.get("bytes"), "path": recording.get("path")}

    Audio.encode_example = encode_example
    try:
        yield
    finally:
        Audio.encode_example = original
