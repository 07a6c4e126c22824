"""Whether an audio file ends before its sound does. Decoders pass over it in silence, so the bytes are asked."""

# Bit rates in kbit/s and sampling rates in Hz in an mp3 frame's header, by MPEG version (ISO 11172-3 and 13818-3).
_MPEG1_KBPS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0)
_MPEG2_KBPS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0)
_MPEG1_HZ = (44_100, 48_000, 32_000, 0)


def is_truncated(data: bytes) -> bool:
    """Whether an mp3, wav, ogg or opus file is not all there. (Of a flac its decoder says so.)"""
    return mp3_cut_short(data) or wav_cut_short(data) or ogg_cut_short(data)


def mp3_cut_short(data: bytes) -> bool:
    """Whether an mp3 file ends inside a frame, as an interrupted download does, or before its last frame.

    The latter shows only where its encoder told the number of frames in the first.
    """
    at = count = told = 0
    if data[:3] == b"ID3":  # a tag's length is written seven bits a byte
        at = 10 + sum(byte << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=False))
    while at + 4 <= len(data):
        if data[at] != 0xFF or data[at + 1] & 0xE6 != 0xE2:
            return False  # a trailing tag, or not a frame of layer 3: nothing to say
        version, bits = data[at + 1] >> 3 & 3, data[at + 2]
        kbps = (_MPEG1_KBPS if version == 3 else _MPEG2_KBPS)[bits >> 4]
        hz = _MPEG1_HZ[bits >> 2 & 3] >> {3: 0, 2: 1, 0: 2}.get(version, 0)
        if not kbps or not hz:
            return False
        if count == 0:
            told = _frames_told(data[at : at + 64])
        count += 1
        at += (144_000 if version == 3 else 72_000) * kbps // hz + (bits >> 1 & 1)
    return at != len(data) or count <= told


def _frames_told(first: bytes) -> int:
    """The frames that follow the first one, by what most encoders write in it; 0 where they do not."""
    mark = max(first.find(b"Xing"), first.find(b"Info"))
    if mark < 0 or not first[mark + 7] & 1:
        return 0
    return int.from_bytes(first[mark + 8 : mark + 12], "big")


def wav_cut_short(data: bytes) -> bool:
    """Whether a wav file ends before its samples do, or before they begin (RIFF: a name, a length, the chunk)."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return False
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"data":
            # A program that writes to a pipe cannot know the length and gives one near the largest.
            return len(data) < at + 8 + size < 2**31 - 2**16
        at += 8 + size + size % 2
    return True


def ogg_cut_short(data: bytes) -> bool:
    """Whether an ogg or opus file ends inside a page, or without the page that is marked as its last (RFC 3533)."""
    at, last = 0, True
    while data[at : at + 4] == b"OggS":
        lengths = data[at + 27 : at + 27 + data[at + 26]] if at + 27 <= len(data) else b""
        last = at + 27 <= len(data) and data[at + 5] & 4 != 0
        at += 27 + len(lengths) + sum(lengths)
    return at > len(data) or not last
