"""Divides an mp3 file into streams that the decoder reads to their end (ISO 11172-3 and 13818-3).

An mp3 is a row of frames, each with a header that gives its length. Files are joined by `cat`, cut anywhere, and have
tags in between. mpg123, which libsndfile uses, takes the number of frames from the first one (an Info frame), or
estimates it from the first bit rate and the size of the file, and stops there. So every frame is counted here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from kikitori.audio.formats import CUT_SHORT, TOLERANCE_S, AudioError, Stream, no_frames, tag_length

# kbit/s by (whether MPEG 1, layer), and hertz of MPEG 1.
_KBPS = {
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_HZ = (44_100, 48_000, 32_000, 0)
# An encoder adds silence to fill its first and last frames, and writes how much. More than this is a false entry.
_MAX_PADDING_FRAMES = 4


@dataclass(frozen=True, slots=True)
class _Kind:
    """What the frames of one stream have in common.

    samples: per frame. lengths: bytes of a frame, by the third byte of its header. info_at: where Info stands in it.
    """

    hz: int
    samples: int
    lengths: tuple[int, ...]
    info_at: int


@dataclass(slots=True)
class _Run:
    """Complete frames of one kind without a gap. last: where the last one begins. is_cut: the file ends in the next.

    unknown: bytes in front that belong to no frame and no tag, and fill up nothing.
    """

    kind: _Kind
    start: int
    last: int
    end: int
    frames: int
    bit_rates: set[int]
    is_cut: bool
    unknown: int = 0

    @property
    def seconds(self) -> float:
        return self.frames * self.kind.samples / self.kind.hz


def streams(data: bytes) -> Iterator[Stream]:
    """Yields the streams of a file. Raises AudioError if it ends inside a frame, or holds much that is no frame."""
    runs, unknown = _runs(data)
    audio = sum(run.end - run.start for run in runs)
    if unknown > audio or not runs:
        raise AudioError(CUT_SHORT if data[:3] == b"ID3" else no_frames(data))
    if unknown * sum(run.seconds for run in runs) > TOLERANCE_S * audio:
        raise AudioError(f"{unknown} bytes between its mp3 frames are damaged, or no mp3")
    for one, two in pairwise(runs):
        is_joint = not two.unknown or two.kind is not one.kind or _info(data, two)
        # A frame begins inside the last one.
        is_cut = two.start > one.end and _next(data, one.last + 3, one.end) < one.end
        if is_cut or not is_joint:
            raise AudioError(f"the mp3 is damaged near byte {one.end}: bytes are missing, or are no frames")
    while runs:
        same = [runs.pop(0)]
        while runs and runs[0].kind is same[0].kind and not _info(data, runs[0]):
            same.append(runs.pop(0))
        yield _stream(data, same)


def begins(data: bytes, at: int) -> bool:
    """Returns whether an mp3 of several frames begins at a byte."""
    at += tag_length(data, at) if data.startswith(b"ID3", at) else 0
    run = _run(data, at, set())
    return run is not None and run.frames > 2


def _runs(data: bytes) -> tuple[list[_Run], int]:
    """Finds all frames. Also returns the number of bytes that belong to no frame and no tag, and fill up nothing."""
    infos = {at for name in (b"Xing", b"Info") for at in _places(data, name)}
    runs: list[_Run] = []
    at = before = unknown = 0
    while at < len(data):
        if run := _run(data, at, infos):
            run.unknown, before = unknown - before, unknown
            runs.append(run)
            at = len(data) if run.is_cut else run.end
        elif (tag := tag_length(data, at)) and _is_known(data, at + tag):
            at += tag
        else:
            end = _next(data, at, len(data))
            # Zeros fill up some files. Fewer than a frame may be what is left of one.
            is_filling = data.count(0, at, end) == end - at and (
                not runs or end == len(data) or end - at >= runs[-1].end - runs[-1].last
            )
            unknown += 0 if is_filling else end - at
            at = end
    return runs, unknown


def _stream(data: bytes, runs: list[_Run]) -> Stream:
    kind, start = runs[0].kind, runs[0].start
    frames = sum(run.frames for run in runs)
    pieces = [data[run.start : run.end] for run in runs]
    info = _info(data, runs[0])
    stated = padding = 0
    if info:
        frames -= 1
        stated, padding = _stated(info)
    missing_s = (stated - frames) * kind.samples / kind.hz
    if missing_s > TOLERANCE_S or (runs[-1].is_cut and not stated):
        raise AudioError(CUT_SHORT)
    if stated >= frames and padding <= _MAX_PADDING_FRAMES * kind.samples and info[:4] != b"VBRI":
        # The decoder leaves the padding out.
        return Stream(b"".join(pieces), (frames * kind.samples - padding) / kind.hz)
    if info:
        pieces[0] = pieces[0][kind.lengths[data[start + 2]] :]
    if len(set[int]().union(*(run.bit_rates for run in runs))) > 1:
        # With a constant bit rate the decoder's estimate is right; otherwise this states the number.
        pieces.insert(0, _info_frame(data[start : start + 4], kind, frames))
    return Stream(b"".join(pieces), frames * kind.samples / kind.hz)


def _info(data: bytes, run: _Run) -> bytes:
    """Returns what an Info frame holds from its name on; nothing if the run does not begin with one."""
    for name, at in ((b"Xing", run.kind.info_at), (b"Info", run.kind.info_at), (b"VBRI", 36)):
        if data.startswith(name, run.start + at):
            return data[run.start + at : run.start + at + 160]
    return b""


def _stated(info: bytes) -> tuple[int, int]:
    """Returns the number of frames behind an Info frame (0: not stated), and the samples that the encoder added."""
    if info[:4] == b"VBRI":
        return int.from_bytes(info[14:18], "big"), 0
    flags = info[7]
    encoder = 8 + 4 * (flags & 1) + 4 * (flags >> 1 & 1) + 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)
    padding = int.from_bytes(info[encoder + 21 : encoder + 24], "big") if info[encoder : encoder + 1] > b"\0" else 0
    return int.from_bytes(info[8:12], "big") if flags & 1 else 0, (padding >> 12) + (padding & 0xFFF)


def _run(data: bytes, at: int, infos: set[int]) -> _Run | None:
    """Follows the frames from a byte on, while they are of one kind and no Info frame begins."""
    kind = _kind_at(data, at)
    if not kind or not _is_frame(data, at, kind):
        return None
    one, three, mono = data[at + 1] & 0x1E, data[at + 2] & 0x0C, data[at + 3] >= 0xC0
    start, before, frames, lengths, info_at = at, at, 0, kind.lengths, kind.info_at
    bit_rates: set[int] = set()
    last = len(data) - 4
    while at <= last and data[at] == 0xFF and data[at + 1] & 0x1E == one and (byte := data[at + 2]) & 0x0C == three:
        length = lengths[byte]
        if not length or (data[at + 3] >= 0xC0) != mono or (at + info_at in infos and frames):
            break
        if at + length > len(data):
            return _Run(kind, start, before, at, frames, bit_rates, is_cut=True)
        before = at
        at += length
        frames += 1
        bit_rates.add(byte >> 4)
    return _Run(kind, start, before, at, frames, bit_rates, is_cut=at > last and data[at : at + 1] == b"\xff")


def _kind_at(data: bytes, at: int) -> _Kind | None:
    """Returns the kind of the frame that begins at a byte, None if its header is none."""
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] & 0xE0 != 0xE0:
        return None
    kind = _kind(data[at + 1] & 0x1E, data[at + 2] & 0x0C, data[at + 3] >= 0xC0)
    return kind if kind and kind.lengths[data[at + 2]] else None


@cache
def _kind(one: int, three: int, mono: bool) -> _Kind | None:
    version, layer = one >> 3, 4 - (one >> 1 & 3)
    hz = _HZ[three >> 2] >> {3: 0, 2: 1, 0: 2}.get(version, 0)
    if version == 1 or layer == 4 or not hz:
        return None
    mpeg1 = version == 3
    samples = {1: 384, 2: 1152, 3: 1152 if mpeg1 else 576}[layer]
    slot = 4 if layer == 1 else 1
    lengths = [0] * 256
    for byte in range(256):
        if byte & 0x0C == three and 0 < byte >> 4 < 15:
            slots = samples // 8 * 1000 * _KBPS[mpeg1, layer][byte >> 4] // hz // slot
            lengths[byte] = (slots + (byte >> 1 & 1)) * slot
    # Info stands behind the side information of layer 3.
    info_at = 4 + (17 if mono else 32) if mpeg1 else 4 + (9 if mono else 17)
    return _Kind(hz, samples, tuple(lengths), info_at)


def _is_frame(data: bytes, at: int, kind: _Kind) -> bool:
    """Returns whether a frame, and not just bytes like its header: it is followed by another, a tag or the end."""
    behind = at + kind.lengths[data[at + 2]]
    return behind + 4 > len(data) or _kind_at(data, behind) is kind or tag_length(data, behind) > 0


def _is_known(data: bytes, at: int) -> bool:
    """Returns whether a tag may end here; otherwise its length is wrong."""
    return at >= len(data) or not data[at] or _kind_at(data, at) is not None or tag_length(data, at) > 0


def _next(data: bytes, at: int, end: int) -> int:
    """Returns the next byte before the end at which a frame or a tag begins, otherwise the end."""
    frame = data.find(b"\xff", at + 1, end)
    while frame >= 0 and not ((kind := _kind_at(data, frame)) and _is_frame(data, frame, kind)):
        frame = data.find(b"\xff", frame + 1, end)
    end = frame if frame >= 0 else end
    tags = (data.find(name, at + 1, end) for name in (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN"))
    return min((tag for tag in tags if tag >= 0), default=end)


def _places(data: bytes, name: bytes) -> Iterator[int]:
    at = data.find(name)
    while at >= 0:
        yield at
        at = data.find(name, at + 1)


def _info_frame(header: bytes, kind: _Kind, frames: int) -> bytes:
    """Makes the frame in which encoders state the number of frames: silent, of the highest bit rate."""
    first = bytes([0xFF, header[1] | 1, header[2] & 0x0C | 0xE0, header[3]])
    text = b"Info" + (1).to_bytes(4, "big") + frames.to_bytes(4, "big")
    return (first + bytes(kind.info_at - 4) + text).ljust(kind.lengths[first[2]], b"\0")
