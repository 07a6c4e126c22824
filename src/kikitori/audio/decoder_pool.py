"""Decodes audio in worker processes. If a file crashes its worker, that clip is rejected and the next one decoded."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import chain, islice
from multiprocessing import Pipe
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import numpy as np

from kikitori.audio.decoder_process import MAX_BYTES, MAX_DURATION_S, MAX_SECONDS, MEMORY_SAMPLES, Block
from kikitori.audio.formats import AudioError
from kikitori.audio.waveform import Part, parts, peak_of, waveform

# Attempts per file. A worker that dies was most often crashed by the file, but the system may have been out of memory.
MAX_TRIES = 2
# A worker does no linear algebra, and OpenBLAS's threads take time to start. The malloc settings make glibc keep freed
# memory for the next clip: fresh pages for each clip took 5 % of the time.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**26), "MALLOC_TRIM_THRESHOLD_": str(2**27)}


class AudioWorkerError(RuntimeError):
    """A decoder process cannot be started. No recording is at fault."""


class Decoder:
    """One decoder process (`decoder_process`). It starts at once; only the first call waits until it is ready.

    longest_s: seconds that a recording may have.
    """

    def __init__(self, longest_s: int = MAX_DURATION_S) -> None:
        self._longest_s = longest_s
        # Samples are returned through shared memory: as messages they would be copied three more times.
        self._memory = _memory_file()
        self._start()

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        with theirs:
            arguments = (theirs.fileno(), self._memory, self._longest_s)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "kikitori.audio.decoder_process", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), self._memory],
                env={**os.environ, **ENVIRONMENT},
            )
        self._ready = False

    def __call__(self, source: Path | bytes, join: Callable[[Iterable[Block]], Any] = waveform) -> Any:
        """Decodes a file, or the bytes of one, to (samples,) float32 at 16 kHz in [-1, 1], mono.

        join: what makes that of its blocks, or `waveform.pcm`, which makes int16. Raises AudioError if the recording
        cannot be used, AudioWorkerError if the decoder process cannot be started.
        """
        for _ in range(MAX_TRIES):
            try:
                return join(self._request(source))
            except (EOFError, ConnectionError):
                death = self._death()
                self._start()
        raise AudioError(death)

    def stream(self, path: Path) -> Generator[Part, None, None]:
        """Decodes a file to the parts of what `__call__` returns, each as it is taken, so that few are in memory.

        A recording that was written as floating-point numbers is decoded twice: they are scaled by their peak. Raises
        the same errors, also after parts that could be decoded.
        """
        decoded: Iterator[Block] = self._blocks(path)
        peak = 1.0
        first = next(decoded)
        if first.is_float:
            peak = max(peak, *(peak_of(part.samples) for part in parts(chain([first], decoded), peak)))
            decoded = self._blocks(path)
        else:
            decoded = chain([first], decoded)
        yield from parts(decoded, peak)

    def _blocks(self, path: Path) -> Generator[Block, None, None]:
        """The blocks of a file. If the process dies, another one takes over after the blocks that were taken."""
        taken = 0
        for _ in range(MAX_TRIES):
            try:
                for block in islice(self._request(path), taken, None):
                    taken += 1
                    yield block
                return
            except (EOFError, ConnectionError):
                death = self._death()
                self._start()
            except GeneratorExit:
                if self._connection.closed:
                    raise
                self._process.kill()  # it waits to be asked for the rest, which is not wanted
                self._death()
                self._start()
                raise
        raise AudioError(death)

    def _request(self, source: Path | bytes) -> Iterator[Block]:
        """Receives a recording piece by piece; the process waits until each is taken out of the shared memory."""
        if not self._ready:
            self._wait_until_ready()
        if isinstance(source, Path):
            self._connection.send_bytes(os.fsencode(source.absolute()))
        elif len(source) > MAX_BYTES:
            raise AudioError(f"has {len(source) / 2**30:.1f} GB, over {MAX_BYTES >> 30} GB; split it")
        else:
            self._connection.send_bytes(b"")
            self._connection.send_bytes(source)
        more = True
        while more:
            count, *facts, more, error_text = json.loads(self._connection.recv_bytes())
            if error_text:
                raise AudioError(error_text)
            samples = np.empty(min(count, MEMORY_SAMPLES), np.float32)
            os.preadv(self._memory, [samples.data], 0)
            if more:
                self._connection.send_bytes(b"next")
            yield Block(samples, *facts)

    def _wait_until_ready(self) -> None:
        try:
            self._connection.recv_bytes()
        except (EOFError, ConnectionError) as error:
            death = self._death()
            if self._process.returncode < 0:  # it was killed from outside: try again
                raise
            raise AudioWorkerError(f"the decoder process cannot be started: {death}; see above") from error
        self._ready = True

    def _death(self) -> str:
        """Describes how the process ended."""
        self._connection.close()
        code = self._process.wait()
        if code == -signal.SIGALRM:
            return f"took longer than {MAX_SECONDS} s to decode"
        if code < 0:
            return f"the decoder was killed by {signal.Signals(-code).name}"
        return f"the decoder ended with {code}"

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        self._process.kill()
        self._process.wait()
        os.close(self._memory)


class Decoders:
    """A pool of decoder processes for several threads, which end with the `with` block."""

    def __init__(self, count: int) -> None:
        self._all = [Decoder() for _ in range(count)]
        self._idle: SimpleQueue[Decoder] = SimpleQueue()
        for decoder in self._all:
            self._idle.put(decoder)

    def __call__(self, source: Path | bytes, join: Callable[[Iterable[Block]], Any] = waveform) -> Any:
        """Calls an idle `Decoder`; waits while all are busy."""
        decoder = self._idle.get()
        try:
            return decoder(source, join)
        finally:
            self._idle.put(decoder)

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for decoder in self._all:
            decoder.close()


def _memory_file() -> int:
    """Returns the descriptor of a file in memory, or of a temporary file where the system (macOS) has none."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("samples")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
