"""Divides a recording into streams that libsndfile decodes from their beginning to their end.

libsndfile stops where the header of a file says, or after the first of several files that were joined, without an
error. So the structure of each format is read here first: every byte of audio is in a stream, or AudioError is raised.
"""

import re
from collections.abc import Callable, Iterator
from typing import Literal

from kikitori.audio import chunks, mp3, ogg
from kikitori.audio.formats import AudioError, Stream, unreadable, without_tags

# "fLaC" and the header of the block that must follow.
_FLAC = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_AU_UNKNOWN = 2**32 - 1


def streams(data: bytes) -> Iterator[Stream]:
    """Yields the streams of a recording. Raises AudioError if it is incomplete, damaged, or in no known format."""
    if not data:
        raise AudioError("the file has no bytes")
    untagged = without_tags(data)
    if read := _READERS.get(untagged[:4]):
        yield from read(untagged)
    elif reason := unreadable(data):
        raise AudioError(reason)
    else:
        yield from mp3.streams(data)


def _flac(data: bytes) -> Iterator[Stream]:
    """The number of samples is set to "unknown": libsndfile then reads to the end, and reports damage in between."""
    starts = [match.start() for match in _FLAC.finditer(data)] or [0]
    for start, end in zip(starts, [*starts[1:], len(data)], strict=True):
        info = data[start + 18 : start + 26]
        bits = int.from_bytes(info, "big")
        hz, samples = bits >> 44, bits & (2**36 - 1)
        unknown = (bits - samples).to_bytes(8, "big")
        yield Stream(data[start : start + 18] + unknown[: len(info)] + data[start + 26 : end], samples / max(hz, 1))


def _au(data: bytes) -> Iterator[Stream]:
    order: Literal["big", "little"] = "big" if data.startswith(b".snd") else "little"
    at = 0
    while data[at : at + 4] == data[:4]:
        offset, stated = (int.from_bytes(data[at + i : at + i + 4], order) for i in (4, 8))
        start = at + offset
        end = start + stated
        if end > len(data) or data[end : end + 4] != data[:4]:  # nothing but samples, or another file, can follow
            chunks.check_behind(data, end)
            end = len(data)
        length = end - start
        head = data[at : at + 8] + max(0, length).to_bytes(4, order) + data[at + 12 : start]
        yield Stream(head + data[start:end], present=length, stated=length if stated == _AU_UNKNOWN else stated)
        at = max(end, at + 4)


def _sphere(data: bytes) -> Iterator[Stream]:
    """NIST SPHERE: lines of text, then samples. More of them than stated are an error of the file."""
    size = int(data[8:16]) if data[8:16].strip().isdigit() else 1024
    stated = 1
    for name in (b"sample_count", b"channel_count", b"sample_n_bytes"):
        found = re.search(name + rb" -\w+ (\d{1,12})\b", data[:size])
        stated *= int(found[1]) if found else 1
    yield Stream(data, present=len(data) - size, stated=stated)


_READERS: dict[bytes, Callable[[bytes], Iterator[Stream]]] = {
    b"OggS": ogg.streams,
    b"fLaC": _flac,
    b".snd": _au,
    b"dns.": _au,
    b"NIST": _sphere,
    **dict.fromkeys(chunks.LAYOUTS, chunks.streams),
}
