"""Reads files that consist of chunks (wav, RF64, w64, aiff, caf), and repairs what their headers state.

A header states how many bytes of samples follow. A program that writes to a pipe cannot know the number, one that is
killed never corrects it, and others count the header too, or omit the byte that pads a chunk.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from kikitori.audio import mp3
from kikitori.audio.formats import CUT_SHORT, AudioError, Stream


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a container writes its chunks: a name, a length, and content that is padded to a multiple of `align`.

    first: where the first chunk begins. name, length: bytes of each. samples: the chunk that holds them, from its byte
    `offset` on. needed: the chunks that describe them. total: where the length of the file is stated, and the bytes
    that it does not count. counts_head: a chunk's length includes its name and length.
    """

    first: int
    name: int
    length: int
    is_big: bool
    align: int
    samples: bytes
    needed: tuple[bytes, ...]
    total: tuple[int, int] | None
    offset: int = 0
    counts_head: bool = False

    def number(self, data: bytes) -> int:
        return int.from_bytes(data, "big" if self.is_big else "little")

    def bytes(self, number: int) -> bytes:
        return number.to_bytes(self.length, "big" if self.is_big else "little")

    def padded(self, end: int) -> int:
        return end + -end % self.align


_GUID = bytes.fromhex("f3acd3118cd100c04f8edb8a")
_WAV = _Layout(12, 4, 4, False, 2, b"data", (b"fmt ",), (4, 8))
LAYOUTS = {
    **dict.fromkeys((b"RIFF", b"RF64", b"BW64"), _WAV),
    b"RIFX": _Layout(12, 4, 4, True, 2, b"data", (b"fmt ",), (4, 8)),
    b"FORM": _Layout(12, 4, 4, True, 2, b"SSND", (b"FVER", b"COMM"), (4, 8), offset=8),
    b"caff": _Layout(8, 4, 8, True, 1, b"data", (b"desc", b"kuki", b"pakt"), None, offset=4),
    b"riff": _Layout(40, 16, 8, False, 8, b"data" + _GUID, (b"fmt " + _GUID,), (16, 0), counts_head=True),
}
# Chunks that programs write behind the samples. Such a chunk may be cut off: no sound is lost.
_BEHIND = (b"LIST", b"id3 ", b"ID3 ", b"bext", b"iXML", b"_PMX", b"cue ", b"smpl", b"PEAK", b"fact", b"JUNK")
# The first bytes of a wav's format chunk if its samples are an mp3.
_MPEG = (b"\x55\x00", b"\x50\x00")
_OTHERS = (*LAYOUTS, b"OggS", b"fLaC", b".snd", b"dns.", b"NIST")


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Content from start to end; is_regular: it has the stated length, and the next chunk begins where it should."""

    name: bytes
    start: int
    end: int
    stated: int
    is_regular: bool


def streams(data: bytes) -> Iterator[Stream]:
    """Yields the streams of a file, or of several that were joined. Raises AudioError if one has no samples' chunk."""
    begin = 0
    while layout := LAYOUTS.get(data[begin : begin + 4]):
        chunks, end = _chunks(data, begin, layout)
        samples = [chunk for chunk in chunks if chunk.name == layout.samples]
        if not samples:
            raise AudioError(CUT_SHORT if not chunks or chunks[-1].end >= len(data) else "has no chunk with samples")
        needed = [(name, data[c.start : c.end]) for name in layout.needed for c in chunks if c.name == name]
        is_whole = begin == 0 and end >= len(data) and len(samples) == 1 and all(c.is_regular for c in chunks)
        for chunk in samples:
            if layout is _WAV and needed and needed[0][1].startswith(_MPEG):
                yield from mp3.streams(data[chunk.start : chunk.end])
                continue
            file = data  # which may have gigabytes: copied only if it needs repair
            if not is_whole:
                content = data[chunk.start : chunk.end]
                file = _written(data[begin : begin + layout.first], layout, [*needed, (layout.samples, content)])
            present = chunk.end - chunk.start - layout.offset
            yield Stream(file, present=present, stated=chunk.stated - layout.offset)
        begin = end


def _chunks(data: bytes, begin: int, layout: _Layout) -> tuple[list[_Chunk], int]:
    """Returns the chunks of one file, and where it ends."""
    chunks: list[_Chunk] = []
    at = begin + layout.first
    while data[at : at + 4] not in LAYOUTS and (chunk := _chunk(data, at, layout)):
        if chunk.stated == 2**32 - 1 and chunks and chunks[0].name == b"ds64":
            long_length = layout.number(data[chunks[0].start + 8 : chunks[0].start + 16])
            chunk = _Chunk(chunk.name, chunk.start, chunk.start + long_length, long_length, True)
        if chunk.name == layout.samples:
            chunk = _samples(data, chunk, layout)
        chunks.append(chunk)
        at = _next(data, chunk.end, layout)
    return chunks, at


def _chunk(data: bytes, at: int, layout: _Layout) -> _Chunk | None:
    """Returns the chunk that begins at a byte, None if the data end before its content or no name stands there."""
    start = at + layout.name + layout.length
    name = data[at : at + layout.name]
    if start > len(data) or not _has_name(data, at):
        return None
    stated = max(0, layout.number(data[at + layout.name : start]) - (start - at if layout.counts_head else 0))
    end = start + stated
    return _Chunk(name, start, end, stated, end <= len(data) and _next(data, end, layout) == layout.padded(end))


def _samples(data: bytes, chunk: _Chunk, layout: _Layout) -> _Chunk:
    """Returns the chunk of samples as it is, whatever it states."""
    present = len(data) - chunk.start
    if chunk.stated <= present and _ends_at(data, chunk.end, layout):
        return chunk
    for end in {chunk.end, layout.padded(chunk.end)}:
        check_behind(data, end)
    # Near the maximum, or with more bytes behind it than stated: not known when it was written.
    is_unknown = chunk.stated <= present or chunk.stated >= 2 ** (8 * layout.length - 1) - 2**16
    return _Chunk(chunk.name, chunk.start, len(data), present if is_unknown else chunk.stated, is_regular=False)


def check_behind(data: bytes, at: int) -> None:
    """Raises AudioError if a recording of another format begins at a byte: it would be taken for more samples."""
    if data[at : at + 4] in _OTHERS or mp3.begins(data, at):
        raise AudioError("a recording of another format is joined to it; convert each, and join the results")


def _ends_at(data: bytes, at: int, layout: _Layout) -> bool:
    """Returns whether the samples end at a byte: only other chunks, another file, or zeros follow."""
    while at < len(data):
        at = _next(data, at, layout)
        if data[at : at + 4] in LAYOUTS:
            return True
        chunk = _chunk(data, at, layout)
        if not chunk:
            return data.count(0, at) == len(data) - at
        if chunk.end > len(data):
            return chunk.name[:4] in _BEHIND
        at = chunk.end
    return True


def _next(data: bytes, end: int, layout: _Layout) -> int:
    """Returns where the chunk after one that ends at a byte begins: behind the padding, if that was not omitted."""
    padded = layout.padded(end)
    return end if _has_name(data, end) and not _has_name(data, padded) else padded


def _has_name(data: bytes, at: int) -> bool:
    return at + 4 <= len(data) and all(32 <= byte < 127 for byte in data[at : at + 4])


def _written(head: bytes, layout: _Layout, chunks: list[tuple[bytes, bytes]]) -> bytes:
    """Writes a file of these chunks with the right lengths."""
    counted = layout.name + layout.length if layout.counts_head else 0
    body = b"".join(
        name + layout.bytes(len(content) + counted) + content + bytes(-len(content) % layout.align)
        for name, content in chunks
    )
    head = (b"RIFF" if layout is _WAV else head[:4]) + head[4 : layout.first]
    if layout.total:
        at, uncounted = layout.total
        head = head[:at] + layout.bytes(len(head) + len(body) - uncounted) + head[at + layout.length :]
    return head + body
