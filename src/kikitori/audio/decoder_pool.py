"""Decoding in processes that may die of what they read: a clip that takes one down is refused, and the next goes on."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from multiprocessing import Pipe
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from kikitori.audio.decoder_process import MAX_BYTES, MAX_FRAMES, MAX_SECONDS, AudioError

# A decoder that died is most often the file's doing, but it may have been the machine's, short of memory.
TRIES = 2
# Samples that are copied at a time; of a longer recording the memory is given back.
AT_ONCE = 2**24
# It multiplies nothing, and OpenBLAS's threads take time to start. And glibc keeps what it freed for the next clip: to
# be given fresh pages for each took 5 % of the time.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**26), "MALLOC_TRIM_THRESHOLD_": str(2**27)}


class AudioWorkerError(RuntimeError):
    """The decoder process cannot be started; no recording is to blame."""


class Decoder:
    """One decoder process (`decoder_process`). It is started at once and waited for at the first call."""

    def __init__(self) -> None:
        # Samples come through memory that both processes see: as messages they would be copied three times more.
        self._memory = _memory()
        self._start()

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "kikitori.audio.decoder_process", str(theirs.fileno()), str(self._memory)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), self._memory],
                env={**os.environ, **ENVIRONMENT},
            )
        self._ready = False

    def __call__(self, source: Path | bytes) -> tuple[NDArray[np.float32], int]:
        """(samples,) mono, and their rate in Hz. Raises AudioError, or AudioWorkerError if no decoder starts."""
        for _ in range(TRIES):
            try:
                return self._asked(source)
            except (EOFError, ConnectionError):
                died = self._died()
                self._start()
        raise AudioError(died)

    def _asked(self, source: Path | bytes) -> tuple[NDArray[np.float32], int]:
        if not self._ready:
            self._wait()
        if isinstance(source, Path):
            self._connection.send_bytes(os.fsencode(source.absolute()))
        elif len(source) > MAX_BYTES:
            raise AudioError(f"has {len(source) / 2**30:.1f} GB, over {MAX_BYTES >> 30} GB; cut it into parts")
        else:
            self._connection.send_bytes(b"")
            self._connection.send_bytes(source)
        count, rate, refusal = json.loads(self._connection.recv_bytes())
        if refusal:
            raise AudioError(refusal)
        samples = np.empty(min(count, MAX_FRAMES), np.float32)
        for start in range(0, len(samples), AT_ONCE):
            os.preadv(self._memory, [samples[start : start + AT_ONCE].data], 4 * start)
        if len(samples) > AT_ONCE:
            os.ftruncate(self._memory, 0)
        return samples, rate

    def _wait(self) -> None:
        try:
            self._connection.recv_bytes()
        except (EOFError, ConnectionError) as error:
            died = self._died()
            if self._process.returncode < 0:  # somebody else's doing
                raise
            raise AudioWorkerError(f"the process that decodes cannot be started: {died}; see above") from error
        self._ready = True

    def _died(self) -> str:
        self._connection.close()
        code = self._process.wait()
        if code == -signal.SIGALRM:
            return f"took longer than {MAX_SECONDS} s to decode"
        return (
            f"the decoder was killed by {signal.Signals(-code).name}" if code < 0 else f"the decoder ended with {code}"
        )

    def close(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()
        os.close(self._memory)


def _memory() -> int:
    """A file in memory, by its descriptor; on a disk where the system (macOS) has none."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("samples")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Decoders:
    """So many processes that decode, for as many threads to call; they end with the `with` block."""

    def __init__(self, count: int) -> None:
        self._all = [Decoder() for _ in range(count)]
        self._idle: SimpleQueue[Decoder] = SimpleQueue()
        for decoder in self._all:
            self._idle.put(decoder)

    def __call__(self, source: Path | bytes) -> tuple[NDArray[np.float32], int]:
        """As of `Decoder`, by whichever is idle."""
        decoder = self._idle.get()
        try:
            return decoder(source)
        finally:
            self._idle.put(decoder)

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for decoder in self._all:
            decoder.close()
