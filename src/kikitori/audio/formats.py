"""The formats of recordings: names of files, tags around the audio, and files that cannot be decoded."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Files that are decoded, by suffix. Inside a file only its bytes count.
SUFFIXES = (
    *(".mp3", ".wav", ".flac", ".ogg", ".oga", ".opus"),
    *(".aif", ".aiff", ".aifc", ".au", ".bwf", ".caf", ".mp2", ".mpga", ".rf64", ".snd", ".sph", ".w64", ".wave"),
)
# Files that hold speech as well, but that libsndfile cannot decode.
UNREADABLE_SUFFIXES = (
    *(".3gp", ".aac", ".ac3", ".amr", ".ape", ".avi", ".ds2", ".dss", ".m4a", ".m4b", ".m4r", ".m4v", ".mka", ".mkv"),
    *(".mov", ".mp4", ".mpeg", ".mpg", ".qta", ".ra", ".spx", ".tta", ".voc", ".weba", ".webm", ".wma", ".wv"),
)
FORMATS = ("mp3", "wav", "flac", "ogg", "opus", "aiff", "au", "caf", "w64", "sph")
CONVERT = "convert it: ffmpeg -i IN OUT.flac"
# What a file is that begins with these bytes (at this offset).
UNREADABLE = (
    (4, b"ftyp", f"is MP4 or M4A, which cannot be decoded; {CONVERT}"),
    (0, b"\x1a\x45\xdf\xa3", f"is WebM or Matroska, which cannot be decoded; {CONVERT}"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", f"is WMA, which cannot be decoded; {CONVERT}"),
    (0, b"#!AMR", f"is AMR, which cannot be decoded; {CONVERT}"),
    (0, b"ADIF", f"is AAC, which cannot be decoded; {CONVERT}"),
    *((0, b"\xff" + bytes([b]), f"is AAC, which cannot be decoded; {CONVERT}") for b in (0xF0, 0xF1, 0xF8, 0xF9)),
    (0, b"MAC ", f"is Monkey's Audio, which cannot be decoded; {CONVERT}"),
    (0, b"wvpk", f"is WavPack, which cannot be decoded; {CONVERT}"),
    (0, b"\x0b\x77", f"is AC-3, which cannot be decoded; {CONVERT}"),
    (0, b"version https://git-lfs", "is a Git LFS pointer, not the recording; run git lfs pull"),
    (0, b"\x00\x05\x16\x07", "is an AppleDouble file (what macOS notes about a file), not a recording"),
    (0, b"<", "is HTML or XML, not a recording; was it a download that failed?"),
)
# Seconds by which a recording may be shorter than its file or its corpus states: both count whole mp3 frames (24 to
# 72 ms), of which decoders skip what the encoder added, and some headers count themselves.
TOLERANCE_S = 0.1
CUT_SHORT = "the file is cut short"
NOT_SAMPLES = "holds values that are not finite, or far beyond full scale (divide 16-bit samples by 32768)"


class AudioError(Exception):
    """A recording cannot be used. The message is the reason alone, without the file's name."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Bytes that libsndfile decodes from their beginning to their end, and how much it must return.

    seconds: of audio; None if it follows from the bytes of samples that the file has (`present`) and that its header
    states (`stated`). padding_s: seconds of the encoder's padding that may follow them, which are cut off.
    """

    data: bytes
    seconds: float | None = None
    present: int = 0
    stated: int = 0
    padding_s: float = 0.0


def find_recordings(folder: Path) -> tuple[list[Path], list[Path]]:
    """Returns the recordings below a folder, and the files that would need conversion, each sorted.

    Linked folders are searched too, each folder once. Hidden files (such as the `._a.mp3` of macOS) are no recordings.
    """
    readable, unreadable = [], []
    for path in _files(folder, set()):
        if path.suffix.lower() in SUFFIXES:
            readable.append(path)
        elif path.suffix.lower() in UNREADABLE_SUFFIXES:
            unreadable.append(path)
    return sorted(readable), sorted(unreadable)


def _files(folder: Path, seen: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if entry.is_dir():
            yield from _files(entry, seen)
        else:
            yield entry


def unreadable(data: bytes) -> str:
    """Returns what a file is that cannot be decoded, "" if it does not begin like one."""
    return next((text for at, magic, text in UNREADABLE if data.startswith(magic, at)), "")


def no_frames(data: bytes) -> str:
    """Returns why a file with no known beginning is no mp3 either."""
    if data[:1] == b"\xff" and data[1:2] >= b"\xe0" and data[2:3] < b"\x10":
        return f"is an mp3 of free bit rate, whose frames cannot be counted; {CONVERT}"
    return f"is in no format that can be decoded ({', '.join(FORMATS)}); {CONVERT}"


def tag_length(data: bytes, at: int) -> int:
    """Returns the length of the tag (ID3, APE, Lyrics3) that begins at this byte, 0 if there is none.

    Texts and pictures stand before, behind and, in joined files, between the audio.
    """
    start = data[at : at + 32]
    if start[:3] == b"ID3" and len(start) >= 10:  # seven bits per byte; a footer repeats the header
        size = sum((byte & 0x7F) << shift for byte, shift in zip(start[6:10], (21, 14, 7, 0), strict=True))
        return 10 + size + (10 if start[5] & 0x10 else 0)
    if start[:3] == b"TAG":
        return 227 if start[:4] == b"TAG+" else 128
    if start[:8] == b"APETAGEX" and len(start) == 32:
        return int.from_bytes(start[12:16], "little") + (32 if start[23] & 0x80 else 0)
    if start[:11] == b"LYRICSBEGIN":
        end = max(data.find(b"LYRICS200", at), data.find(b"LYRICSEND", at))
        return end + 9 - at if end >= 0 else 0
    return 0


def without_tags(data: bytes) -> bytes:
    """Returns a file of any format but mp3 without the tags that some programs put around it."""
    start, end = 0, len(data)
    while data.startswith(b"ID3", start) and (length := tag_length(data, start)):
        start += length
    while data[end - 128 : end - 125] == b"TAG" and end - 128 >= start:
        end -= 128
    if data[end - 32 : end - 24] == b"APETAGEX":  # its footer
        end -= int.from_bytes(data[end - 20 : end - 16], "little") + (32 if data[end - 9] & 0x80 else 0)
    return data[start : max(start, end)]
