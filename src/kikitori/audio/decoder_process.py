"""From an audio file to its samples, in a process of its own: this is that process's program.

libsndfile and what it stands on read what strangers wrote, and a file may make them crash, hang or take all memory. So
they run where that costs one clip: see `kikitori.decoders` for the other end. No torch here: it starts in 0.1 s.
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

import numpy as np
import soundfile
from numpy.typing import NDArray

from kikitori.audio.truncation import is_truncated

SAMPLE_RATE = 16_000
# mp3 overshoots full scale by a part of it; floats beyond this were never scaled to [-1, 1], or are damaged.
ABSURD = 100.0
# In Hz: a quarter of what Whisper hears.
MIN_RATE = 4_000
# Values of a resampling kernel. 44.1 and 22.05 kHz need 0.07 and 0.14 million, a prime near them 700 million.
MAX_KERNEL = 16_000_000
# Three hours at 48 kHz: 2 GB as float32.
MAX_FRAMES = 3 * 3600 * 48_000
# Of one file, as it lies on the disk: three hours of stereo at 48 kHz and 16 bit.
MAX_BYTES = 2**31
# What the process may map, of which Python and its libraries take 0.3 GB.
MAX_MEMORY = 2**32
# For one clip, from opening it to its last sample. An hour of mp3 takes some 2 s.
MAX_SECONDS = 60
# Values (frames times channels) that are decoded at a time.
BLOCK = 2**16


class AudioError(Exception):
    """A recording cannot be used. The message is the reason alone, without the file's name."""


class Recording(soundfile.SoundFile):
    """A file that is read from its beginning to its end.

    soundfile seeks after each read, to where the file already is, and mp3 decodes to other samples after that.
    """

    def seekable(self) -> bool:
        return False


def open_recording(data: bytes) -> Recording:
    """The recording in these bytes, of which nothing is decoded yet. Raises AudioError, or an error of soundfile's."""
    if not data:
        raise AudioError("the file has no bytes")
    if is_truncated(data):
        raise AudioError("the file is cut short")
    file = Recording(io.BytesIO(data))
    divisor = gcd(file.samplerate, SAMPLE_RATE)
    # A rate that only a damaged header gives: resampling, or what it makes, would fill the memory.
    if file.samplerate < MIN_RATE or (file.samplerate // divisor) * (SAMPLE_RATE // divisor) > MAX_KERNEL:
        raise AudioError(f"has a sampling rate of {file.samplerate} Hz; resample it to {SAMPLE_RATE} Hz")
    if file.frames > MAX_FRAMES:
        raise AudioError(f"has {file.frames} samples a channel, over {MAX_FRAMES} (3 h at 48 kHz); cut it into parts")
    return file


def mono(file: Recording) -> Iterator[NDArray[np.float32]]:
    """The mean of the channels, block by block. Raises AudioError for values that are no audio."""
    left = file.frames
    while left > 0:
        block = file.read(min(left, max(1, BLOCK // file.channels)), dtype="float32", always_2d=True)
        if not len(block):
            return
        if not (np.abs(block) < ABSURD).all():  # nor is NaN
            raise AudioError("holds values that are not finite, or far beyond full scale")
        left -= len(block)
        yield block.mean(axis=1)


def reason(error: Exception) -> str:
    """What is told of a recording: "missing", or what is wrong with it, without its path, which may name a home."""
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, MemoryError):
        return f"needs more than {MAX_MEMORY >> 30} GB to decode"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return (
        str(error) if isinstance(error, AudioError) else f"cannot be decoded: {getattr(error, 'error_string', error)}"
    )


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. A pipe, a device or a folder is never opened: it counts as missing."""
    if not path.is_file():
        raise FileNotFoundError
    if path.stat().st_size > MAX_BYTES:
        raise AudioError(f"has {path.stat().st_size / 2**30:.1f} GB, over {MAX_BYTES >> 30} GB; cut it into parts")
    return path.read_bytes()


def serve_request(connection: Connection, memory: int) -> None:
    """Take one recording, a path or else bytes; write its samples to `memory` and give [how many, rate, refusal]."""
    path = os.fsdecode(connection.recv_bytes())
    data = b"" if path else connection.recv_bytes()
    # The signal's own action ends this process, whatever it is in. It holds where the one that asked is gone, too.
    signal.alarm(MAX_SECONDS)
    written, rate, refusal = 0, 0, ""
    try:
        with open_recording(read_bytes(Path(path)) if path else data) as file:
            rate = file.samplerate
            for block in mono(file):
                os.pwrite(memory, block.data, 4 * written)
                written += len(block)
    except Exception as error:  # whatever it is, it is this recording's
        refusal = reason(error)
    signal.alarm(0)
    connection.send_bytes(json.dumps([written, rate, refusal]).encode())


def main() -> None:
    """Answer until the one that asks is gone. Arguments: the numbers of an open socket, and of a file in memory."""
    # Ctrl-C reaches all processes of a terminal; this one ends when the one that asks does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for kind, most in ((resource.RLIMIT_AS, MAX_MEMORY), (resource.RLIMIT_CORE, 0)):
        with suppress(ValueError, OSError):  # a tighter limit is in force
            resource.setrlimit(kind, (most, most))
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # mpg123 tells each damaged frame
    connection, memory = Connection(int(sys.argv[1])), int(sys.argv[2])
    connection.send_bytes(b"ready")
    with suppress(EOFError, ConnectionError):
        while True:
            serve_request(connection, memory)


if __name__ == "__main__":
    main()
