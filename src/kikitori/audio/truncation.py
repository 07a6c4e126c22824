"""Detects truncated audio files. Decoders do not report truncation, so this inspects the file's bytes."""

# Bit rates in kbit/s and sampling rates in Hz in an mp3 frame's header, by MPEG version (ISO 11172-3 and 13818-3).
_MPEG1_KBPS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0)
_MPEG2_KBPS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0)
_MPEG1_HZ = (44_100, 48_000, 32_000, 0)


def is_truncated(data: bytes) -> bool:
    """Returns whether an mp3, wav, ogg or opus file is incomplete. (For flac the decoder itself raises an error.)"""
    return mp3_is_truncated(data) or wav_is_truncated(data) or ogg_is_truncated(data)


def mp3_is_truncated(data: bytes) -> bool:
    """Returns whether an mp3 file ends inside a frame, as after an interrupted download, or before its last frame.

    The latter is found only if the encoder wrote the number of frames into the first one.
    """
    at = count = declared = 0
    if data[:3] == b"ID3":  # a tag; its length has seven bits per byte
        at = 10 + sum(byte << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=False))
    while at + 4 <= len(data):
        if data[at] != 0xFF or data[at + 1] & 0xE6 != 0xE2:
            return False  # a trailing tag, or not a frame of layer 3: unknown
        version, bits = data[at + 1] >> 3 & 3, data[at + 2]
        kbps = (_MPEG1_KBPS if version == 3 else _MPEG2_KBPS)[bits >> 4]
        hz = _MPEG1_HZ[bits >> 2 & 3] >> {3: 0, 2: 1, 0: 2}.get(version, 0)
        if not kbps or not hz:
            return False
        if count == 0:
            declared = _declared_frames(data[at : at + 64])
        count += 1
        at += (144_000 if version == 3 else 72_000) * kbps // hz + (bits >> 1 & 1)
    return at != len(data) or count <= declared


def _declared_frames(first: bytes) -> int:
    """Returns the number of frames after the first one, which most encoders write into that; 0 if it is not there."""
    tag = max(first.find(b"Xing"), first.find(b"Info"))
    if tag < 0 or not first[tag + 7] & 1:
        return 0
    return int.from_bytes(first[tag + 8 : tag + 12], "big")


def wav_is_truncated(data: bytes) -> bool:
    """Returns whether a wav file ends within its samples or before them (RIFF: chunks with a name and a length)."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return False
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"data":
            # A program that writes to a pipe does not know the length in advance and writes one near the maximum.
            return len(data) < at + 8 + size < 2**31 - 2**16
        at += 8 + size + size % 2
    return True


def ogg_is_truncated(data: bytes) -> bool:
    """Returns whether an ogg or opus file ends inside a page, or without a page marked as the last one (RFC 3533)."""
    at, last = 0, True
    while data[at : at + 4] == b"OggS":
        lengths = data[at + 27 : at + 27 + data[at + 26]] if at + 27 <= len(data) else b""
        last = at + 27 <= len(data) and data[at + 5] & 4 != 0
        at += 27 + len(lengths) + sum(lengths)
    return at > len(data) or not last
