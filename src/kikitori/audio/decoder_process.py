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

import numpy as np
import soundfile
from numpy.typing import NDArray

from kikitori.audio.truncation import is_truncated

# Hz.
SAMPLE_RATE = 16_000
# An mp3 overshoots full scale slightly. Float samples beyond this were never scaled to [-1, 1], or are damaged.
MAX_AMPLITUDE = 100.0
# Hz: a quarter of Whisper's rate. Lower ones come from damaged headers.
MIN_RATE = 4_000
# Values of a resampling kernel: 44.1 and 22.05 kHz need 0.07 and 0.14 million, a prime number near them 700 million.
MAX_KERNEL = 16_000_000
# Samples per channel: three hours at 48 kHz, 2 GB as float32.
MAX_FRAMES = 3 * 3600 * 48_000
# Bytes of one file: three hours of stereo at 48 kHz and 16 bit.
MAX_BYTES = 2**31
# Bytes that the process may map, of which Python and its libraries take 0.3 GB.
MAX_MEMORY = 2**32
# Seconds for one clip, from opening it to its last sample. An hour of mp3 takes about 2 s.
MAX_SECONDS = 60
# Values (samples times channels) that are decoded at a time.
BLOCK_VALUES = 2**16


class AudioError(Exception):
    """A recording cannot be used. The message is the reason alone, without the file's name."""


class Recording(soundfile.SoundFile):
    """An audio file that is read once, from its beginning to its end.

    soundfile seeks to the present position after each read. After a seek, mp3 decodes to other samples, so this
    declares files as not seekable.
    """

    def seekable(self) -> bool:
        return False


def open_recording(data: bytes) -> Recording:
    """Opens the bytes of an audio file without decoding any samples.

    Raises AudioError for a file that is empty, truncated or too large to process, or an error of soundfile.
    """
    if not data:
        raise AudioError("the file has no bytes")
    if is_truncated(data):
        raise AudioError("the file is cut short")
    file = Recording(io.BytesIO(data))
    divisor = gcd(file.samplerate, SAMPLE_RATE)
    # Only damaged headers give such rates, and the resampling kernel or the resampled audio would fill the memory.
    if file.samplerate < MIN_RATE or (file.samplerate // divisor) * (SAMPLE_RATE // divisor) > MAX_KERNEL:
        raise AudioError(f"has a sampling rate of {file.samplerate} Hz; resample it to {SAMPLE_RATE} Hz")
    if file.frames > MAX_FRAMES:
        raise AudioError(f"has {file.frames} samples per channel, over {MAX_FRAMES} (3 h at 48 kHz); split it")
    return file


def mono_blocks(file: Recording) -> Iterator[NDArray[np.float32]]:
    """Decodes a recording block by block and yields the mean of its channels, (samples,) float32.

    Raises AudioError for values that are no audio.
    """
    remaining = file.frames
    while remaining > 0:
        block = file.read(min(remaining, max(1, BLOCK_VALUES // file.channels)), dtype="float32", always_2d=True)
        if not len(block):
            return
        if not (np.abs(block) < MAX_AMPLITUDE).all():  # false for NaN, too
            raise AudioError("holds values that are not finite, or far beyond full scale")
        remaining -= len(block)
        yield block.mean(axis=1)


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


def serve_request(connection: Connection, memory: int) -> None:
    """Decodes one recording: receives a path or bytes, writes the samples to `memory`, sends [samples, rate, error].

    memory: a file descriptor. An empty path announces the bytes. error: empty if all is well.
    """
    path = os.fsdecode(connection.recv_bytes())
    data = b"" if path else connection.recv_bytes()
    # The default action of the signal ends this process wherever it is, even after the parent process has died.
    signal.alarm(MAX_SECONDS)
    written, rate, error_text = 0, 0, ""
    try:
        with open_recording(read_bytes(Path(path)) if path else data) as file:
            rate = file.samplerate
            for block in mono_blocks(file):
                os.pwrite(memory, block.data, 4 * written)
                written += len(block)
    except Exception as error:  # whatever it is, this recording caused it
        error_text = error_reason(error)
    signal.alarm(0)
    connection.send_bytes(json.dumps([written, rate, error_text]).encode())


def main() -> None:
    """Serves requests until the parent process closes the connection or ends.

    Command-line arguments: the descriptors of an open socket and of a file in memory.
    """
    # Ctrl-C reaches all processes of a terminal. This one ends with its parent, which decides when.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for kind, limit in ((resource.RLIMIT_AS, MAX_MEMORY), (resource.RLIMIT_CORE, 0)):
        with suppress(ValueError, OSError):  # a lower limit is in force
            resource.setrlimit(kind, (limit, limit))
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # mpg123 prints a line for each damaged frame
    connection, memory = Connection(int(sys.argv[1])), int(sys.argv[2])
    connection.send_bytes(b"ready")
    with suppress(EOFError, ConnectionError):
        while True:
            serve_request(connection, memory)


if __name__ == "__main__":
    main()
