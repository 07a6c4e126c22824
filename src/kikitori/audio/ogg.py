"""Divides an ogg file into streams that the decoder reads to their end (RFC 3533, 7845).

Ogg is a row of pages, each with its length, a checksum and the position of its last sample. libsndfile decodes only the
first stream of a file, and skips damaged and missing pages without an error.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import dropwhile, pairwise

from kikitori.audio.formats import CONVERT, CUT_SHORT, TOLERANCE_S, AudioError, Stream

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_OPUS, _VORBIS = b"OpusHead", b"\x01vorbis"
_OPUS_HZ = 48_000
# Two of the longest packets, in samples.
_OPUS_MAX_PADDING = 2 * 5_760
# Samples of a frame of Opus, by the upper five bits of a packet's first byte.
_OPUS_FRAME = (480, 960, 1920, 2880) * 3 + (480, 960) * 2 + (120, 240, 480, 960) * 4
# A position beyond any audio, but small enough to be computed with.
_UNLIMITED = 2**48


@dataclass(frozen=True, slots=True)
class _Page:
    """position: samples up to its end; -1 if no packet ends in it. lacing: lengths of its segments; 255: goes on."""

    data: bytes
    begins: bool
    position: int
    serial: int
    number: int
    lacing: bytes

    @property
    def body(self) -> bytes:
        return self.data[27 + len(self.lacing) :]

    @property
    def packets(self) -> int:
        return len(self.lacing) - self.lacing.count(255)


def streams(data: bytes) -> Iterator[Stream]:
    """Yields the streams of a file. Raises AudioError if it ends inside a page or packet, or a page is damaged."""
    pages: dict[int, list[_Page]] = {}  # of the streams that play at the same time, by serial number
    for page in _pages(data):
        if page.begins and any(len(rows) > 1 for rows in pages.values()):
            yield from _stream(pages)
            pages = {}
        if not page.begins and page.serial not in pages:
            raise AudioError("an ogg page belongs to no stream: the file is damaged")
        pages.setdefault(page.serial, []).append(page)
    yield from _stream(pages)


def _pages(data: bytes) -> Iterator[_Page]:
    at = 0
    while at < len(data):
        head = data[at : at + 27]
        if not head.startswith(b"OggS"):
            if b"OggS".startswith(head):
                raise AudioError(CUT_SHORT)
            if data.count(0, at) == len(data) - at:
                return
            raise AudioError(f"{len(data) - at} bytes from byte {at} on are no ogg pages: the file is damaged")
        lacing = data[at + 27 : at + 27 + head[26]] if len(head) == 27 else b""
        page = data[at : at + 27 + len(lacing) + sum(lacing)]
        if len(head) < 27 or len(lacing) < head[26] or len(page) < 27 + len(lacing) + sum(lacing):
            raise AudioError(CUT_SHORT)
        if _with_checksum(page) != page:
            raise AudioError(f"the ogg page at byte {at} does not match its checksum: the file is damaged")
        position = int.from_bytes(page[6:14], "little", signed=True)
        serial, number = int.from_bytes(page[14:18], "little"), int.from_bytes(page[18:22], "little")
        yield _Page(page, page[5] & 2 > 0, position, serial, number, lacing)
        at += len(page)


def _with_checksum(page: bytes) -> bytes:
    """Ogg's CRC-32 is zlib's with all bits reversed, which starts from 0 and is not inverted."""
    crc = zlib.crc32((page[:22] + bytes(4) + page[26:]).translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return page[:22] + crc.to_bytes(4, "big").translate(_REVERSED) + page[26:]


def _stream(pages_of: dict[int, list[_Page]]) -> Iterator[Stream]:
    """Yields the stream of Opus or Vorbis in these pages, nothing if it has no samples."""
    audio = [pages for pages in pages_of.values() if pages[0].body.startswith((_OPUS, _VORBIS))]
    if len(audio) != 1:
        raise AudioError(f"has {len(audio)} streams of Opus or Vorbis at the same time, not one; {CONVERT}")
    pages = audio[0]
    if pages[-1].lacing[-1:] == b"\xff":  # its last packet goes on
        raise AudioError(CUT_SHORT)
    sound = list(dropwhile(lambda page: page.position <= 0, pages[1:]))
    if any(two.number != (one.number + 1) & 0xFFFFFFFF for one, two in pairwise(sound)):
        raise AudioError("ogg pages are missing: the file is damaged")
    if any(page.packets and page.position < 0 for page in sound):
        raise AudioError("an ogg page has no position: the file is damaged")
    positions = [page.position for page in sound if page.packets]
    if positions != sorted(positions):
        raise AudioError("the positions of its ogg pages decrease: the file is damaged")
    if not positions:
        return
    head, last = pages[0].body, pages[-1].data
    padding_s = 0.0
    if head.startswith(_OPUS):
        seconds = _opus_seconds(head, sound)
    else:
        longest, hz = 1 << (head[28] >> 4) >> 1, int.from_bytes(head[12:16], "little")
        # A broadcast is recorded from any position on. Only if the first is too low for one, all begins at 0.
        if positions[0] <= longest * sound[0].packets:
            seconds, padding_s = positions[-1] / hz, max(TOLERANCE_S, 2 * longest / hz)
        else:
            seconds = (positions[-1] - positions[0]) / hz
        # libsndfile ends at the last position, which may be wrong. Without it, it returns the encoder's padding, too.
        last = last[:6] + _UNLIMITED.to_bytes(8, "little") + last[14:]
    # libsndfile accepts padding of Opus only in a page that is marked as the last one.
    last = _with_checksum(last[:5] + bytes([last[5] | 4]) + last[6:])
    yield Stream(b"".join([*(page.data for page in pages[:-1]), last]), seconds, padding_s=padding_s)


def _opus_seconds(head: bytes, pages: list[_Page]) -> float:
    """Returns the seconds of audio in the packets, less what the encoder added at both ends."""
    samples = _opus_samples(pages)
    first = next(i for i, page in enumerate(pages) if page.packets)
    before = max(0, pages[first].position - _opus_samples(pages[: first + 1]))
    padding = max(0, before + samples - max(page.position for page in pages))
    if padding > _OPUS_MAX_PADDING:
        raise AudioError(f"its ogg pages hold {padding / _OPUS_HZ:.2f} s more than they state: the file is damaged")
    return (samples - padding - int.from_bytes(head[10:12], "little")) / _OPUS_HZ


def _opus_samples(pages: list[_Page]) -> int:
    """Counts the samples of the packets that begin in these pages, by their first two bytes (RFC 6716, section 3)."""
    samples, goes_on = 0, False
    for page in pages:
        body, at = page.body, 0
        for length in page.lacing:
            if not goes_on and length:
                frames = (1, 2, 2, int.from_bytes(body[at + 1 : at + 2]) & 63)[body[at] & 3]
                samples += frames * _OPUS_FRAME[body[at] >> 3]
            goes_on = length == 255
            at += length
    return samples
