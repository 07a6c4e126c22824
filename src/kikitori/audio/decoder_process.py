"""The program of a decoder process: reads audio files on request and returns their samples.

libsndfile and the libraries below it parse untrusted files, and a file may make them crash, hang or use up the memory.
In a process of their own that costs one clip. `kikitori.audio.decoder_pool` starts these processes. This module must
not import torch, so that a process starts in 0.1 s.
"""

import io
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from math import gcd
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from kikitori.audio.formats import CONVERT, CUT_SHORT, NOT_SAMPLES, TOLERANCE_S, AudioError, Stream
from kikitori.audio.streams import streams

# Hz.
SAMPLE_RATE = 16_000
# Float samples beyond this were never scaled to [-1, 1], or are damaged.
MAX_AMPLITUDE = 100.0
# Hz, and channels. Others come from damaged headers.
MIN_RATE, MAX_RATE = 4_000, 768_000
MAX_CHANNELS = 64
# Values of a resampling kernel: 44.1 and 22.05 kHz need 0.07 and 0.14 million, a prime number near them 700 million.
MAX_KERNEL = 16_000_000
# Seconds of one recording that is decoded as a whole, and of one that is read as it is decoded.
MAX_DURATION_S, MAX_STREAM_S = 3 * 3600, 24 * 3600
# Speech takes 250 bytes a second and more in every format. A longer recording in fewer bytes is silence, or made to
# fill the disk.
MIN_BYTES_PER_S = 250
# Seconds that a file may hold however small it is.
SHORT_S = 60
# Bytes of one file: three hours of stereo at 48 kHz and 16 bit.
MAX_BYTES = 2**31
# Bytes that the process may map, of which Python and its libraries take 0.3 GB.
MAX_MEMORY = 2**32
# Seconds for one recording, from opening it to its last sample, and bytes for which it has one more. An hour of mp3
# takes about 2 s and one of Opus 11 s, but many times that on a busy machine.
MAX_SECONDS = 60
BYTES_A_SECOND = 100_000
# Values (samples times channels) that are decoded at a time.
BLOCK_VALUES = 2**16
# Samples that are handed over at a time: 87 s at 48 kHz, so that most recordings are handed over at once.
MEMORY_SAMPLES = 2**22
# Bytes of a sample that is not compressed.
WIDTHS = {"PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
WIDTHS |= dict.fromkeys(("PCM_S8", "PCM_U8", "ULAW", "ALAW"), 1)
# Codecs of which it is known how many samples a number of bytes must give.
CODECS = {"VORBIS", "OPUS", "IMA_ADPCM", "MS_ADPCM", "GSM610", "G721_32"}
CODECS |= {"MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III"}


class Block(NamedTuple):
    """Mono samples of a recording. Those of one `stream` have one rate (Hz) and follow each other without a gap.

    is_float: they were written as floating-point numbers, which may exceed full scale. stream_s: the seconds of the
    whole stream, by its structure.
    """

    samples: NDArray[np.float32]
    rate: int
    stream: int
    is_float: bool
    stream_s: float = 0.0


class StreamFile(soundfile.SoundFile):
    """A stream that is read once, from its beginning to its end.

    soundfile seeks to the present position after each read. After a seek, mp3 decodes to other samples, so this
    declares files as not seekable.
    """

    def seekable(self) -> bool:
        return False


def blocks(data: bytes, longest_s: int = MAX_DURATION_S) -> Iterator[Block]:
    """Decodes the bytes of an audio file of at most longest_s, block by block: all of its audio, or it raises an error.

    Raises AudioError for a file that is empty, incomplete, too long to process or holds values that are no audio, or an
    error of soundfile.
    """
    most_s = SHORT_S + len(data) / MIN_BYTES_PER_S
    allowed_s = min(longest_s, most_s)
    seconds = 0.0
    for number, stream in enumerate(streams(data)):
        with open_stream(stream.data) as file:
            is_float = file.subtype in ("FLOAT", "DOUBLE")
            stream_s = _expected_s(file, stream)
            if longest_s < seconds + stream_s <= most_s:  # before hours of it are decoded
                raise AudioError(_too_long(longest_s))
            for samples in _mono(file, stream):
                seconds += len(samples) / file.samplerate
                if seconds > allowed_s:
                    raise AudioError(_too_long(longest_s) if allowed_s == longest_s else _too_little(allowed_s, data))
                yield Block(samples, file.samplerate, number, is_float, stream_s)


def open_stream(data: bytes) -> StreamFile:
    """Opens a stream without decoding any samples. Raises AudioError for a rate or codec that cannot be processed."""
    try:
        file = StreamFile(io.BytesIO(data))
    except soundfile.LibsndfileError as error:
        raise AudioError(f"cannot be decoded: {error.error_string.rstrip('.')}; {CONVERT}") from error
    rate = file.samplerate
    divisor = gcd(rate, SAMPLE_RATE)
    # Only damaged headers give such rates, and the resampling kernel or the resampled audio would fill the memory.
    if not MIN_RATE <= rate <= MAX_RATE or (rate // divisor) * (SAMPLE_RATE // divisor) > MAX_KERNEL:
        raise AudioError(f"has a sampling rate of {rate} Hz; resample it to {SAMPLE_RATE} Hz")
    if file.channels > MAX_CHANNELS:
        raise AudioError(f"has {file.channels} channels, over {MAX_CHANNELS}")
    if file.subtype not in WIDTHS.keys() | CODECS:
        raise AudioError(f"has the codec {file.subtype}, of which lost samples are not noticed; {CONVERT}")
    return file


def _mono(file: StreamFile, stream: Stream) -> Iterator[NDArray[np.float32]]:
    """Yields the mean of the channels, (samples,) float32, and checks that as much was decoded as there must be."""
    expected, decoded = round(_expected_s(file, stream) * file.samplerate), 0
    size = max(1, BLOCK_VALUES // file.channels)
    while len(block := file.read(size, dtype="float32", always_2d=True)):
        if not (np.abs(block) < MAX_AMPLITUDE).all():  # false for NaN, too
            raise AudioError(NOT_SAMPLES)
        wanted = max(0, expected - decoded) if stream.padding_s else len(block)
        decoded += len(block)
        if wanted:
            yield block[:wanted].mean(axis=1)
    if expected - decoded > TOLERANCE_S * file.samplerate:
        raise AudioError(f"{CUT_SHORT}: {_seconds(file, decoded)} of {_seconds(file, expected)} can be decoded")
    if stream.padding_s and decoded - expected > stream.padding_s * file.samplerate:
        raise AudioError(f"states {_seconds(file, expected)}, but holds {_seconds(file, decoded)}: it is damaged")


def _expected_s(file: StreamFile, stream: Stream) -> float:
    if stream.seconds is not None:
        return stream.seconds
    most = max(stream.present, stream.stated)
    if width := WIDTHS.get(file.subtype):
        return most / (width * file.channels * file.samplerate)
    return file.frames / file.samplerate * most / max(1, stream.present)


def _seconds(file: StreamFile, samples: int) -> str:
    return f"{samples / file.samplerate:.2f} s"


def _too_long(longest_s: int) -> str:
    return f"is longer than {longest_s // 3600} hours; split it"


def _too_little(allowed_s: float, data: bytes) -> str:
    return f"has more than {allowed_s:.0f} s in {len(data)} bytes: it is silent, or made to fill the disk"


def error_reason(error: Exception) -> str:
    """Returns why a recording cannot be used: "missing", or the fault, without its path (which may name a user)."""
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, MemoryError):
        return f"needs more than {MAX_MEMORY >> 30} GB to decode"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, AudioError):
        return str(error)
    return f"cannot be decoded: {getattr(error, 'error_string', error)}"


def read_bytes(path: Path) -> bytes:
    """Reads a file. A pipe, device or folder is never opened.

    Raises FileNotFoundError if the path is not a regular file, AudioError if the file is too large.
    """
    if not path.is_file():
        raise FileNotFoundError
    if path.stat().st_size > MAX_BYTES:
        raise AudioError(f"has {path.stat().st_size / 2**30:.1f} GB, over {MAX_BYTES >> 30} GB; split it")
    return path.read_bytes()


def serve_request(connection: Connection, memory: int, longest_s: int = MAX_DURATION_S) -> None:
    """Decodes one recording: receives a path or bytes, writes samples to `memory` and sends what they are.

    memory: a file descriptor. An empty path announces the bytes. A message has the number of samples, what else
    a `Block` has, whether more follow once it is answered, and an error; empty if all is well.
    """
    path = os.fsdecode(connection.recv_bytes())
    data = b"" if path else connection.recv_bytes()
    # The default action of the signal ends this process wherever it is, even after the parent process has died.
    signal.alarm(MAX_SECONDS)
    written, error_text, last = 0, "", Block(np.empty(0, np.float32), SAMPLE_RATE, 0, False)

    def send(more: bool) -> None:
        message = [written, *last[1:], more, error_text]
        connection.send_bytes(json.dumps(message).encode())

    try:
        data = read_bytes(Path(path)) if path else data
        signal.alarm(MAX_SECONDS + len(data) // BYTES_A_SECOND)
        for block in blocks(data, longest_s):
            if written and (block.stream != last.stream or written + len(block.samples) > MEMORY_SAMPLES):
                left = signal.alarm(0)
                send(more=True)
                connection.recv_bytes()
                signal.alarm(max(1, left))
                written = 0
            os.pwrite(memory, block.samples.data, 4 * written)
            written += len(block.samples)
            last = block
    except (EOFError, ConnectionError):  # of the parent process, which has ended
        raise
    except Exception as error:  # whatever it is, this recording caused it
        error_text = error_reason(error)
    signal.alarm(0)
    send(more=False)


def main() -> None:
    """Serves requests until the parent process closes the connection or ends.

    Command-line arguments: the descriptors of an open socket and of a file in memory, and the seconds of a recording.
    """
    # Ctrl-C reaches all processes of a terminal. This one ends with its parent, which decides when.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for kind, limit in ((resource.RLIMIT_AS, MAX_MEMORY), (resource.RLIMIT_CORE, 0)):
        with suppress(ValueError, OSError):  # a lower limit is in force
            resource.setrlimit(kind, (limit, limit))
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # mpg123 prints a line for each damaged frame
    connection, memory, longest_s = Connection(int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
    connection.send_bytes(b"ready")
    with suppress(EOFError, ConnectionError):
        while True:
            serve_request(connection, memory, longest_s)


if __name__ == "__main__":
    main()
