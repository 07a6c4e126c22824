"""Rows of an audio dataset on the Hugging Face Hub, or of a dataset's folder in the Hub's layout."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from datasets import Audio, Dataset, load_dataset

from kikitori.clips import SPLITS, Clip, Corpus
from kikitori.errors import DataError

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
    clips: list[Clip] = []
    for split in SPLITS:
        try:
            rows = load_dataset(name, config, split=splits[split], revision=revision)
        except Exception as error:  # the hub's client, its HTTP layer and every builder have errors of their own
            raise DataError(
                f"data.name={name}, configuration {config}, split {splits[split]} cannot be loaded: "
                f"{type(error).__name__}: {error}\n  Check the three names (data.name, data.config, data.splits), the "
                "network, and HF_TOKEN for a private dataset."
            ) from error
        if missing := {audio_column, text_column, *filter(None, [speaker_column])} - set(rows.column_names):
            raise DataError(
                f"data.name={name} has no column {' or '.join(sorted(missing))}; "
                f"it has: {', '.join(rows.column_names)}. "
                "Set data.audio_column, data.text_column and data.speaker_column."
            )
        recordings = rows.select_columns(audio_column).cast_column(audio_column, Audio(decode=False))
        speakers = rows[speaker_column] if speaker_column else [None] * len(rows)
        for index, (text, speaker) in enumerate(zip(rows[text_column], speakers, strict=True)):
            clip = f"{split}/{index:06d}"
            identity = f"{rows._fingerprint} {index}"
            source = partial(_read, recordings, index, audio_column)
            clips.append(Clip(clip, split, (text or "").strip(), identity, source, speaker and str(speaker)))
    return Corpus(f"hub, {name}" + (f" {config}" if config else ""), clips, [])


def _read(recordings: Dataset, index: int, column: str) -> bytes:
    recording = recordings[index][column] or {}
    if recording.get("bytes"):
        return recording["bytes"]
    if recording.get("path"):
        return Path(recording["path"]).read_bytes()
    return b""
