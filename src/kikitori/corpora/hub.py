"""Rows of an audio dataset on the Hugging Face Hub, or of a dataset's folder in the Hub's layout."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
from datasets import Audio, Dataset, disable_progress_bars, load_dataset

from kikitori.audio.decoder_process import AudioError
from kikitori.corpora.types import OUTSIDE_DATASET, SPLITS, Clip, Corpus
from kikitori.runtime.console import shows_bars
from kikitori.runtime.errors import DataError

MOVED = "mozilla-foundation/common_voice"


def read(
    name: str,
    config: str | None,
    revision: str | None,
    splits: Mapping[str, str],
    audio_column: str,
    text_column: str,
    speaker_column: str | None,
) -> Corpus:
    """A dataset by name, configuration and split; `splits` maps train, validation and test to the dataset's own names.

    A token for a private dataset comes from the environment (HF_TOKEN) alone. Audio is decoded here, never by the
    dataset, whose errors do not name the clip.
    Raises DataError where the dataset cannot be reached, has moved, or has no such split or column.
    """
    if name.startswith(MOVED):
        raise DataError(
            f"data.name={name}: Mozilla's Common Voice left the Hub in October 2025. Download a release from Mozilla "
            "Data Collective and pass data=common_voice data.release=/path/to/cv-corpus-27.0-ja.tar.gz"
        )
    if not shows_bars():
        disable_progress_bars()
    # Where a row may name a file: its own folder, or what was fetched for it.
    roots = [
        datasets.config.HF_DATASETS_CACHE,
        huggingface_hub.constants.HF_HUB_CACHE,
        *([name] if Path(name).is_dir() else []),
    ]
    clips: list[Clip] = []
    for split in SPLITS:
        if not splits.get(split):
            raise DataError(f"data.splits.{split}: not set; give the dataset's own name of its {split} split")
        try:
            with _no_torchcodec():
                rows = load_dataset(name, config, split=splits[split], revision=revision)
        except Exception as error:  # the hub's client, its HTTP layer and every builder have errors of their own
            raise DataError(
                f"data.name={name}, configuration {config}, split {splits[split]} cannot be loaded: "
                f"{type(error).__name__}: {error.__cause__ or error}\n"
                "  Check the three names (data.name, data.config, data.splits), the network, "
                "and HF_TOKEN for a private dataset."
            ) from error
        if missing := {audio_column, text_column, *filter(None, [speaker_column])} - set(rows.column_names):
            raise DataError(
                f"data.name={name} has no column {' or '.join(sorted(missing))}; "
                f"it has: {', '.join(rows.column_names)}. "
                "Set data.audio_column, data.text_column and data.speaker_column."
            )
        try:
            recordings = rows.select_columns(audio_column).cast_column(audio_column, Audio(decode=False))
        except (TypeError, ValueError, NotImplementedError) as error:
            raise DataError(f"data.audio_column={audio_column} of {name} holds no audio: {error}") from error
        speakers = rows[speaker_column] if speaker_column else [None] * len(rows)
        for index, (text, speaker) in enumerate(zip(rows[text_column], speakers, strict=True)):
            if not isinstance(text, str | None):
                raise DataError(f"data.text_column={text_column} of {name} holds {type(text).__name__}, not text")
            clip = f"{split}/{index:06d}"
            identity = f"{rows._fingerprint} {index}"
            source = partial(_read, recordings, index, audio_column, roots)
            speaker = None if speaker is None else str(speaker)
            clips.append(Clip(clip, split, (text or "").strip(), identity, source, speaker))
    return Corpus(f"hub, {name}" + (f" {config}" if config else ""), clips, [])


@contextmanager
def _no_torchcodec() -> Iterator[None]:
    """Let a folder of recordings be loaded: datasets 5 wants torchcodec for it, if only to note a recording's path."""
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


def _read(recordings: Dataset, index: int, column: str, roots: Sequence[Path | str]) -> Path | bytes:
    recording = recordings[index][column] or {}
    if recording.get("bytes"):
        return recording["bytes"]
    if not recording.get("path"):
        return b""
    path = Path(os.path.realpath(recording["path"]))
    if not any(path.is_relative_to(os.path.realpath(root)) for root in roots):
        raise AudioError(OUTSIDE_DATASET)
    return path
