"""Audio files as they occur in practice and rarely in tests: joined, cut, streamed, with headers that state nonsense.

Each is made of a known sound, and either all of it must be decoded or the file be rejected for the true reason.
`python tests/helpers/odd_recordings.py` decodes all of them and prints a table.
"""

import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from kikitori.audio.formats import AudioError
from kikitori.audio.waveform import SAMPLE_RATE, decode

Sound = NDArray[np.float64]


class Odd(NamedTuple):
    """truth: sounds that must be decoded, each (samples,) at 16 kHz; none if it is to be rejected for `reason`."""

    name: str
    data: bytes
    truth: tuple[Sound, ...] = ()
    reason: str = ""


def sound(seconds: float, seed: int = 0, rate: int = SAMPLE_RATE) -> Sound:
    """Returns two tones that wander, so that no part resembles another part or another seed."""
    times = np.arange(round(seconds * rate)) / rate
    one = (250 + 60 * seed) * times - 40 * np.cos(2 * np.pi * (0.31 + 0.07 * seed) * times) + 20 * times**2
    two = 700 * times - 60 * np.cos(2 * np.pi * 0.43 * times + seed) - 8 * times**2
    return 0.25 * np.sin(2 * np.pi * one) + 0.15 * np.sin(2 * np.pi * two)


def encode(samples: Sound, rate: int, container: str, subtype: str = "", channels: int = 1, **options: object) -> bytes:
    file = io.BytesIO()
    rows = np.stack([samples] * channels, axis=1)
    soundfile.write(file, rows, rate, format=container, subtype=subtype or None, **options)
    return file.getvalue()


def likeness(decoded: Sound, truth: Sequence[Sound]) -> float:
    """Returns the lowest correlation of any 0.4 s of the truth, but its end, with what was decoded near its place."""
    width = round(0.4 * SAMPLE_RATE)
    lowest, offset = 1.0, 0
    for number, one in enumerate(truth, 2):
        reach = number * SAMPLE_RATE // 8  # each part may begin with a tenth of a second of silence
        for start in range(0, len(one) - width - SAMPLE_RATE // 10 + 1, width):
            part = one[start : start + width]
            near = decoded[max(0, offset + start - reach) : offset + start + width + reach]
            if len(near) < width:
                return 0.0
            size = 2 * len(near)
            products = np.fft.irfft(np.fft.rfft(near, size) * np.conj(np.fft.rfft(part, size)))
            power = np.cumsum(np.insert(near**2, 0, 0))
            energy = power[width:] - power[:-width]
            alike = products[: len(energy)] / np.sqrt(energy * (part**2).sum() + 1e-12)
            lowest = min(lowest, float(alike.max()))
        offset += len(one)
    return lowest


def outcome(odd: Odd) -> tuple[str, bool]:
    """Decodes a file. Returns what happened, and whether it is right."""
    try:
        decoded = decode(odd.data).double().numpy()
    except AudioError as error:
        return f"rejected: {error}", not odd.truth and odd.reason in str(error)
    seconds, whole = (n / SAMPLE_RATE for n in (len(decoded), sum(map(len, odd.truth))))
    if not odd.truth:
        return f"decoded: {seconds:.2f} s", False
    alike = likeness(decoded, odd.truth)
    # An encoder may add some frames of silence to each part; a tenth of a second may be missing.
    right = alike > 0.99 and -0.1 <= seconds - whole <= 0.25 * len(odd.truth)
    return f"decoded: {seconds:.2f} of {whole:.2f} s, correlation {alike:.4f}", right


# mp3


def mp3(samples: Sound, rate: int = 16_000, mode: str = "CONSTANT", channels: int = 1) -> bytes:
    return encode(samples, rate, "MP3", channels=channels, bitrate_mode=mode, compression_level=0.4)


def mp3_frames(data: bytes) -> list[int]:
    """Returns the offsets of the frames of an mp3 from `mp3`, which all have the same first two bytes."""
    kbps = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
    low_kbps = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
    version = data[1] >> 3 & 3
    hz = (44_100, 48_000, 32_000)[data[2] >> 2 & 3] >> {3: 0, 2: 1, 0: 2}[version]
    at, frames = 0, []
    while at < len(data):
        assert data[at : at + 2] == data[:2]
        frames.append(at)
        rate = (kbps if version == 3 else low_kbps)[data[at + 2] >> 4]
        at += (144_000 if version == 3 else 72_000) * rate // hz + (data[at + 2] >> 1 & 1)
    assert at == len(data)
    return frames


def without_info(data: bytes) -> bytes:
    return data[mp3_frames(data)[1] :]


def with_info(data: bytes, frames: int | None = None, padding: int | None = None) -> bytes:
    """Changes what the Info frame states: how many frames follow, or how many samples are padding at each end."""
    changed = bytearray(data)
    at = max(data.find(b"Info"), data.find(b"Xing"))
    if frames is not None:
        changed[at + 8 : at + 12] = frames.to_bytes(4, "big")
    if padding is not None:
        changed[at + 141 : at + 144] = (padding << 12 | padding).to_bytes(3, "big")
    return bytes(changed)


def with_vbri(data: bytes, frames: int) -> bytes:
    """Replaces the Info frame by that of another encoder."""
    first = bytearray(data[: mp3_frames(data)[1]])
    first[4:] = bytes(len(first) - 4)
    first[36:54] = b"VBRI" + bytes(10) + frames.to_bytes(4, "big")
    return bytes(first) + without_info(data)


def id3(size: int, content: bytes = b"\0") -> bytes:
    lengths = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x04\x00\x00" + lengths + (content * (size // len(content) + 1))[:size]


def ape(size: int) -> bytes:
    def end(flags: int) -> bytes:
        fields = (2000, size + 32, 1, flags << 24)
        return b"APETAGEX" + b"".join(field.to_bytes(4, "little") for field in fields) + bytes(8)

    return end(0xA0) + b"\x07" * size + end(0x80)


ID3V1 = b"TAG" + b"title".ljust(125, b"\0")
LYRICS = b"LYRICSBEGIN" + b"IND00002110LYR00011some lyrics" + b"000041LYRICS200"
NOISE = np.random.default_rng(1).bytes(200_000)


def mp3_files() -> Iterator[Odd]:
    one, two, three = sound(3.1, 1), sound(2.3, 2), sound(1.7, 3)
    both, all_three = (one, two), (one, two, three)
    a, b, c = mp3(one), mp3(two), mp3(three)
    variable = mp3(one, mode="VARIABLE"), mp3(two, mode="VARIABLE")
    frames = mp3_frames(a)
    for rate in (8_000, 11_025, 12_000, 22_050, 24_000, 32_000, 44_100, 48_000):
        yield Odd(f"{rate} Hz", mp3(sound(3.1, 1, rate), rate, channels=1 + rate // 40_000), (one,))
    for mode in ("CONSTANT", "AVERAGE", "VARIABLE"):
        for rate in (16_000, 44_100):
            whole = mp3(sound(3.1, 1, rate), rate, mode)
            yield Odd(f"{mode.lower()} bit rate, {rate} Hz", whole, (one,))
            yield Odd(f"{mode.lower()} bit rate, {rate} Hz, without Info", without_info(whole), (one,))
    yield Odd("joined, each with Info", a + b + c, all_three)
    yield Odd("joined, the first with Info", a + without_info(b) + without_info(c), all_three)
    yield Odd("joined, the last with Info", without_info(a) + without_info(b) + c, all_three)
    yield Odd("joined, variable bit rates", variable[0] + variable[1], both)
    yield Odd("joined, variable bit rates, without Info", without_info(variable[0]) + without_info(variable[1]), both)
    yield Odd("joined, 24 and 48 kHz", mp3(sound(3.1, 1, 24_000), 24_000) + mp3(sound(2.3, 2, 48_000), 48_000), both)
    yield Odd("joined, mono and stereo", without_info(a) + without_info(mp3(two, channels=2)), both)
    yield Odd("joined with a tag before each", id3(500) + a + id3(700) + b + id3(9_000) + c, all_three)
    yield Odd("joined with a tag behind each", a + ID3V1 + b + ape(300) + c + ID3V1, all_three)
    yield Odd("joined with zeros between", a + bytes(3_000) + b + bytes(10_000) + c + bytes(5_000), all_three)
    yield Odd("joined, the last cut", a + b + c[: mp3_frames(c)[-6]], reason="cut short")
    yield Odd("joined, the first cut", a[: frames[-40]] + b, reason="cut short")
    yield Odd("two tags, one with a picture", id3(300) + id3(len(NOISE), NOISE) + a, (one,))
    yield Odd("tags behind", a + LYRICS + ape(20_000) + ID3V1, (one,))
    yield Odd("a tag that states too few bytes", id3(100) + bytes(300) + b"\x55" * 20 + a, (one,))
    yield Odd("a tag that states too many bytes", id3(3_000)[:10] + bytes(400) + without_info(a), (one,))
    yield Odd("a tag that states more bytes than there are", id3(2**20)[:2_000], reason="cut short")
    yield Odd("Info states twice the frames", with_info(a, 2 * (len(frames) - 1)), reason="cut short")
    yield Odd("Info states half of the frames", with_info(a, len(frames) // 2), (one,))
    yield Odd("Info states no frames", with_info(variable[0], 0), (one,))
    yield Odd("Info counts itself", with_info(a, len(frames)), (one,))
    yield Odd("Info states padding that is sound", with_info(a, padding=4095), (one,))
    yield Odd("VBRI", with_vbri(variable[0], len(mp3_frames(variable[0])) - 1), (one,))
    yield Odd("VBRI, cut", with_vbri(variable[0], 5_000), reason="cut short")
    yield Odd("cut inside a frame", a[: len(a) // 2 + 7], reason="cut short")
    yield Odd("cut inside the last frame", without_info(a)[:-1], reason="cut short")
    yield Odd("cut behind a frame, with Info", a[: frames[-30]], reason="cut short")
    kept = len(frames) - 30
    yield Odd(
        "cut behind a frame, without Info", without_info(a)[: frames[kept] - frames[1]], (one[: (kept - 4) * 576],)
    )
    yield Odd("begins inside a frame", without_info(a)[50:], (one[1_000:],))
    yield Odd("noise in the middle", a[: frames[30]] + NOISE[:5_000] + a[frames[30] :], reason="no mp3")
    yield Odd("a frame without its header", a[: frames[30]] + bytes(4) + a[frames[30] + 4 :], reason="damaged")
    yield Odd("twenty frames overwritten", a[: frames[30]] + NOISE[: frames[50] - frames[30]] + a[frames[50] :])
    yield Odd("a text behind", a + b"\r\n--boundary--\r\n", (one,))
    yield Odd("in a wav", riff([(b"fmt ", wav_format(0x55)), (b"data", a)]), (one,))
    free = bytearray(without_info(a))
    for at in mp3_frames(bytes(free)):
        free[at + 2] &= 0x0F
    yield Odd("free bit rate", bytes(free), reason="free bit rate")


# ogg

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def ogg(samples: Sound, codec: str = "VORBIS", rate: int = 16_000, channels: int = 1) -> bytes:
    return encode(samples, rate, "OGG", codec, channels, compression_level=0.1)


def ogg_pages(data: bytes) -> list[bytes]:
    pages = []
    while data:
        lacing = data[27 : 27 + data[26]]
        length = 27 + len(lacing) + sum(lacing)
        pages.append(data[:length])
        data = data[length:]
    return pages


def page(original: bytes, **changes: int) -> bytes:
    """Changes a page (flags, position, serial, number) and its checksum."""
    places = {"flags": (5, 1), "position": (6, 8), "serial": (14, 4), "number": (18, 4)}
    changed = bytearray(original)
    for name, value in changes.items():
        at, size = places[name]
        changed[at : at + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")
    changed[22:26] = bytes(4)
    crc = zlib.crc32(bytes(changed).translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    changed[22:26] = crc.to_bytes(4, "big").translate(_REVERSED)
    return bytes(changed)


def position(one: bytes) -> int:
    return int.from_bytes(one[6:14], "little")


def ogg_files() -> Iterator[Odd]:
    one, two, three = sound(20.3, 1), sound(4.1, 2), sound(1.7, 3)
    all_three = (one, two, three)
    for codec in ("VORBIS", "OPUS"):
        a, b, c = (ogg(samples, codec) for samples in (one, two, three))
        pages = ogg_pages(a)
        sounding = [at for at, row in enumerate(pages) if position(row)]
        name, hz = codec.lower(), 48_000 if codec == "OPUS" else 16_000
        for rate in (8_000, 24_000, 48_000):
            yield Odd(f"{name}, {rate} Hz", ogg(sound(20.3, 1, rate), codec, rate, channels=1 + rate // 40_000), (one,))
        yield Odd(f"{name}, chained", a + b + c, all_three)
        yield Odd(f"{name}, without an end mark", b"".join([*pages[:-1], page(pages[-1], flags=0)]), (one,))
        open_ended = [b"".join([*rows[:-1], page(rows[-1], flags=0)]) for rows in map(ogg_pages, (a, b))]
        yield Odd(f"{name}, chained without end marks", open_ended[0] + open_ended[1] + c, all_three)
        yield Odd(f"{name}, cut inside a page", a[: len(a) // 2 + 5], reason="cut short")
        yield Odd(f"{name}, cut inside the head of a page", b"".join(pages[:-1]) + pages[-1][:20], reason="cut short")
        until = position(pages[-2]) * SAMPLE_RATE // hz
        yield Odd(f"{name}, cut between pages", b"".join(pages[:-1]), (one[: until - 500],))
        yield Odd(
            f"{name}, a page missing", b"".join(row for row in pages if row is not pages[sounding[2]]), reason="missing"
        )
        damaged = bytearray(a)
        damaged[len(a) // 2] ^= 4
        yield Odd(f"{name}, a bit flipped", bytes(damaged), reason="checksum")
        yield Odd(
            f"{name}, noise between pages", b"".join([*pages[:4], NOISE[:999], *pages[4:]]), reason="no ogg pages"
        )
        halved = [page(row, position=position(row) // 2) for row in pages]
        yield Odd(f"{name}, positions halved", b"".join(halved))
        yield Odd(f"{name}, the last position is low", b"".join([*pages[:-1], page(pages[-1], position=900)]))
        far = page(pages[-1], position=10**9)
        whole: dict = {"truth": (one,)} if codec == "OPUS" else {"reason": "cut short"}
        yield Odd(f"{name}, the last position is high", b"".join([*pages[:-1], far]), **whole)
        short = ogg_pages(ogg(one[: SAMPLE_RATE // 2], codec))
        low = b"".join([*short[:-1], page(short[-1], position=position(short[-1]) // 2)])
        yield Odd(f"{name}, the only position is low", low, reason="damaged")
        late = [page(row, position=position(row) + 100 * hz) if position(row) else row for row in pages]
        yield Odd(f"{name}, a broadcast from its 100th second on", b"".join(late), (one,))
        first = sounding[1]
        begun = position(pages[first]) * SAMPLE_RATE // hz
        shortened = b"".join(late[: sounding[0]] + late[first + 1 :])
        yield Odd(f"{name}, a broadcast from the middle of its pages on", shortened, (one[begun + 1_000 :],))
        other = [page(row, serial=7) for row in ogg_pages(b)]
        yield Odd(f"{name}, two at a time", pages[0] + other[0] + b"".join(pages[1:] + other[1:]), reason="2 streams")
        beside = [page(pages[-1], serial=7, number=i, flags=2 * (i == 0)) for i in range(3)]
        mixed = pages[0] + beside[0] + b"".join([*pages[1:4], beside[1], *pages[4:], beside[2]])
        yield Odd(f"{name}, beside another kind of stream", mixed, (one,))
        yield Odd(f"{name}, no samples", b"".join(pages[:2]), (one[:0],))
        yield Odd(f"{name}, joined with one without samples", b"".join(pages[:2]) + b, (two,))
        yield Odd(f"{name}, tags and zeros around", id3(2_000) + a + bytes(4_096), (one,))
    speex = page(b"OggS\0" + bytes(21) + bytes([1, 80]) + b"Speex   ".ljust(80, b"\0"), flags=2)
    yield Odd("speex", speex, reason="ffmpeg")
    yield Odd("vorbis and opus, chained", ogg(one) + ogg(two, "OPUS"), (one, two))
    mixed_rates = ogg(sound(20.3, 1, 48_000), rate=48_000, channels=2) + ogg(two)
    yield Odd("vorbis of 48 and 16 kHz, chained", mixed_rates, (one, two))


# flac


def flac_states(data: bytes, samples: int) -> bytes:
    changed = bytearray(data)
    changed[21] = changed[21] & 0xF0 | samples >> 32
    changed[22:26] = (samples % 2**32).to_bytes(4, "big")
    return bytes(changed)


def flac_files() -> Iterator[Odd]:
    one, two = sound(3.1, 1), sound(2.3, 2)
    a, b = encode(one, 16_000, "FLAC"), encode(two, 16_000, "FLAC")
    damaged = bytearray(a)
    damaged[len(a) // 2] ^= 4
    both = (one, two)
    yield Odd("24 bit, 96 kHz, 6 channels", encode(sound(3.1, 1, 96_000), 96_000, "FLAC", "PCM_24", 6), (one,))
    yield Odd("8 bit", encode(one, 16_000, "FLAC", "PCM_S8"), (one,))
    yield Odd("streamed: states no length", flac_states(a, 0), (one,))
    yield Odd("states the first second", flac_states(a, 16_000), (one,))
    yield Odd("states too much", flac_states(a, 99_000), reason="cut short")
    yield Odd("joined", a + b, both)
    yield Odd("joined, streamed", flac_states(a, 0) + flac_states(b, 0), both)
    yield Odd("joined, 16 and 48 kHz", a + encode(sound(2.3, 2, 48_000), 48_000, "FLAC", channels=2), both)
    yield Odd("tags around", id3(500) + a + ID3V1, (one,))
    yield Odd("cut", a[:-700], reason="flac")
    yield Odd("cut, streamed", flac_states(a, 0)[: len(a) // 2], reason="flac")
    yield Odd("a bit flipped", bytes(damaged), reason="flac")
    yield Odd("a hole", a[: len(a) // 2] + a[len(a) // 2 + 3_000 :], reason="flac")
    yield Odd("header only", a[:42])


# wav and others


def wav_format(tag: int, channels: int = 1, rate: int = 16_000, bits: int = 16) -> bytes:
    width = channels * bits // 8
    fields = ((tag, 2), (channels, 2), (rate, 4), (rate * width, 4), (width, 2), (bits, 2))
    return b"".join(value.to_bytes(size, "little") for value, size in fields)


def riff(chunks: list[tuple[bytes, bytes]], pad: bool = True) -> bytes:
    body = b"WAVE"
    for name, content in chunks:
        body += name + len(content).to_bytes(4, "little") + content + bytes(len(content) % 2 * pad)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def states(data: bytes, name: bytes, length: int, order: str = "little", size: int = 4) -> bytes:
    """Changes the length of a chunk."""
    at = data.find(name) + len(name)
    return data[:at] + (length % 2 ** (8 * size)).to_bytes(size, order) + data[at + size :]  # type: ignore[arg-type]


def wav_files() -> Iterator[Odd]:
    one, two = sound(3.1, 1), sound(2.3, 2)
    both = (one, two)
    a, b = encode(one, 16_000, "WAV"), encode(two, 16_000, "WAV")
    pcm, size = a[44:], len(a) - 44
    layout, note = wav_format(1), (b"LIST", b"INFOINAM\x03\0\0\0abc")
    for subtype in (
        "PCM_U8",
        "PCM_24",
        "PCM_32",
        "FLOAT",
        "DOUBLE",
        "ULAW",
        "ALAW",
        "IMA_ADPCM",
        "MS_ADPCM",
        "G721_32",
    ):
        yield Odd(subtype, encode(one, 16_000, "WAV", subtype), (one,))
    for rate, channels in ((8_000, 1), (22_050, 2), (44_100, 6), (96_000, 2)):
        yield Odd(
            f"{rate} Hz, {channels} channels", encode(sound(3.1, 1, rate), rate, "WAV", channels=channels), (one,)
        )
    yield Odd("extensible, 24 bit, 6 channels", encode(one, 16_000, "WAVEX", "PCM_24", 6), (one,))
    yield Odd("big-endian (RIFX)", encode(one, 16_000, "WAV", endian="BIG"), (one,))
    for length, what in ((0, "0"), (-1, "2^32 - 1"), (2**31 - 1, "2^31 - 1"), (2**31 - 2**14, "nearly 2^31")):
        yield Odd(f"states {what} bytes", states(a, b"data", length), (one,))
    yield Odd("states 0 bytes, and the file too", states(states(a, b"data", 0), b"RIFF", 0), (one,))
    yield Odd("states the first second", states(a, b"data", 32_000), (one,))
    yield Odd("states the first second, float", states(encode(one, 16_000, "WAV", "FLOAT"), b"data", 64_000), (one,))
    yield Odd("states the first second, ADPCM", states(encode(one, 16_000, "WAV", "IMA_ADPCM"), b"data", 8_192), (one,))
    yield Odd("counts its header", states(a, b"data", size + 44), (one,))
    yield Odd("states twice the bytes", states(a, b"data", 2 * size), reason="cut short")
    yield Odd("states twice the bytes, ADPCM", states(encode(one, 16_000, "WAV", "IMA_ADPCM"), b"data", 60_000))
    yield Odd("cut", a[:-9_000], reason="cut short")
    yield Odd("cut by 50 ms", a[:-1_600], (one,))
    yield Odd("cut inside its header", a[:30], reason="cut short")
    yield Odd(
        "a chunk before, not padded", riff([(b"LIST", b"odd"), (b"fmt ", layout), (b"data", pcm)], pad=False), (one,)
    )
    yield Odd("chunks around", riff([(b"JUNK", b"odd"), (b"fmt ", layout), (b"data", pcm), note]), (one,))
    yield Odd(
        "8 bit and odd, not padded",
        riff([(b"fmt ", wav_format(1, bits=8)), (b"data", eight(one)[:-1]), note], False),
        (one,),
    )
    yield Odd(
        "a chunk behind that is cut", riff([(b"fmt ", layout), (b"data", pcm), (b"LIST", bytes(99))])[:-50], (one,)
    )
    yield Odd("zeros behind", a + bytes(9_999), (one,))
    yield Odd("a tag behind", a + ID3V1, (one,))
    yield Odd("joined", a + b, both)
    yield Odd("joined, of 16 and 48 kHz", a + encode(sound(2.3, 2, 48_000), 48_000, "WAV", channels=2), both)
    for name, other in (("an mp3", id3(900) + mp3(two)), ("a flac", encode(two, 16_000, "FLAC")), ("an ogg", ogg(two))):
        yield Odd(f"joined with {name}", a + other, reason="another format")
    odd = riff([(b"fmt ", wav_format(1, bits=8)), (b"data", eight(one)[:-1])], False)
    yield Odd("joined with an au, not padded", odd + encode(two, 16_000, "AU"), reason="another format")
    yield Odd("a codec that cannot be decoded", riff([(b"fmt ", wav_format(0xFF)), (b"data", pcm)]), reason="ffmpeg")
    yield Odd("two chunks of samples", riff([(b"fmt ", layout), (b"data", pcm), (b"data", b[44:])]), both)
    yield Odd("float over full scale", encode(4 * one, 16_000, "WAV", "FLOAT"), (one,))
    yield Odd("double 20 times over full scale", encode(50 * one, 16_000, "WAV", "DOUBLE"), (one,))
    yield Odd("float with 16-bit values", encode(30_000 * one, 16_000, "WAV", "FLOAT"), reason="full scale")
    yield Odd("not a number", encode(np.append(one, np.nan), 16_000, "WAV", "FLOAT"), reason="not finite")
    yield Odd("no samples", a[:40] + bytes(4), (one[:0],))
    yield Odd("no chunk of samples", riff([(b"fmt ", layout), note, note]))
    long = encode(one, 16_000, "RF64")
    yield Odd("RF64", long, (one,))
    yield Odd("RF64, states the first second", states(long, b"ds64\x1c\0\0\0" + long[20:28], 32_000, size=8), (one,))
    yield Odd("RF64, states nothing", states(long, b"ds64\x1c\0\0\0" + long[20:28], 0, size=8), (one,))
    yield Odd("RF64, cut", long[:-20_000], reason="cut short")


def eight(samples: Sound) -> bytes:
    return (128 + np.round(127 * samples)).astype(np.uint8).tobytes()


def other_files() -> Iterator[Odd]:
    one, two = sound(3.1, 1), sound(2.3, 2)
    both = (one, two)
    guid = bytes.fromhex("f3acd3118cd100c04f8edb8a")
    w64, aiff, au = (encode(one, 16_000, container) for container in ("W64", "AIFF", "AU"))
    caf, sphere = encode(one, 16_000, "CAF", "PCM_16"), encode(one, 16_000, "NIST")
    big: dict = {"order": "big"}
    yield Odd("w64", w64, (one,))
    yield Odd("w64, states the first second", states(w64, b"data" + guid, 32_024, size=8), (one,))
    yield Odd("w64, states too much", states(w64, b"data" + guid, 199_999, size=8), reason="cut short")
    yield Odd("w64, 24 bit, 44.1 kHz, stereo", encode(sound(3.1, 1, 44_100), 44_100, "W64", "PCM_24", 2), (one,))
    for subtype in ("PCM_S8", "PCM_24", "FLOAT", "ULAW", "IMA_ADPCM"):
        yield Odd(f"aiff, {subtype}", encode(one, 16_000, "AIFF", subtype), (one,))
    for name, length in (("states 0 bytes", 0), ("states -1 bytes", -1), ("states the first second", 32_008)):
        yield Odd(f"aiff, {name}", states(aiff, b"SSND", length, **big), (one,))
    counted = aiff.find(b"COMM") + 10
    yield Odd("aiff, counts no samples", aiff[:counted] + bytes(4) + aiff[counted + 4 :], (one,))
    yield Odd("aiff, cut", aiff[:-9_000], reason="cut short")
    yield Odd("aiff, a tag behind", aiff + ID3V1, (one,))
    yield Odd("aiff, joined", aiff + encode(two, 16_000, "AIFF"), both)
    for name, length in (("states -1 bytes", -1), ("states 0 bytes", 0), ("states the first second", 32_000)):
        yield Odd(f"au, {name}", au[:8] + (length % 2**32).to_bytes(4, "big") + au[12:], (one,))
    yield Odd("au, states too much", au[:8] + (200_000).to_bytes(4, "big") + au[12:], reason="cut short")
    yield Odd("au, joined with a wav", au + encode(two, 16_000, "WAV"), reason="another format")
    yield Odd("aiff, joined with an mp3", aiff + mp3(two), reason="another format")
    yield Odd("au, joined", au + encode(two, 16_000, "AU"), both)
    yield Odd("au, mu-law, 8 kHz", encode(sound(3.1, 1, 8_000), 8_000, "AU", "ULAW"), (one,))
    yield Odd("au, little-endian", encode(one, 16_000, "AU", "PCM_16", endian="LITTLE"), (one,))
    yield Odd("caf, float", encode(one, 16_000, "CAF", "FLOAT"), (one,))
    yield Odd("caf, ALAC", encode(one, 16_000, "CAF", "ALAC_16"), reason="codec ALAC_16")
    yield Odd("caf, states -1 bytes", states(caf, b"data", -1, size=8, **big), (one,))
    yield Odd("caf, states the first second", states(caf, b"data", 32_004, size=8, **big), (one,))
    yield Odd("caf, cut", caf[:-9_000], reason="cut short")
    yield Odd("aiff, 100 channels", encode(one, 16_000, "AIFF", channels=100), reason="100 channels")
    yield Odd("sphere", sphere, (one,))
    yield Odd("sphere, cut", sphere[:-9_000], reason="cut short")
    yield Odd("sphere, counts fewer samples", sphere.replace(b"count -i 49600", b"count -i 16000"), (one,))


def not_audio_files() -> Iterator[Odd]:
    yield Odd("empty", b"", reason="no bytes")
    yield Odd("zeros", bytes(9_999), reason="no format")
    yield Odd("random bytes", NOISE[:50_000], reason="no format")
    yield Odd("a text", "こんにちは。".encode() * 99, reason="no format")
    yield Odd("a web page", b"<!DOCTYPE html><html>log in</html>", reason="HTML")
    yield Odd("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00", reason="git lfs pull")
    yield Odd("an AppleDouble file", b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X" + bytes(4_000), reason="AppleDouble")
    for name, data in (
        ("M4A", b"\0\0\0\x20ftypM4A \0\0\0\0" + NOISE[:9_999]),
        ("WebM", b"\x1a\x45\xdf\xa3" + NOISE[:9_999]),
        ("AAC", b"\xff\xf1\x50\x80" + NOISE[:9_999]),
        ("AMR", b"#!AMR\n" + NOISE[:9_999]),
        ("WMA", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + NOISE[:9_999]),
    ):
        yield Odd(name, data, reason="ffmpeg")


KINDS: dict[str, Callable[[], Iterator[Odd]]] = {
    "mp3": mp3_files,
    "ogg": ogg_files,
    "flac": flac_files,
    "wav": wav_files,
    "other": other_files,
    "no audio": not_audio_files,
}


def main() -> None:
    rows = [(kind, odd.name, *outcome(odd)) for kind, files in KINDS.items() for odd in files()]
    for kind, name, happened, right in rows:
        print(f"{kind:9}{name:46}{'' if right else 'WRONG '}{happened}")
    print(f"{sum(right for *_, right in rows)} of {len(rows)} as they should be")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
