"""Decoded clips, once: 16 kHz int16 in a memory-mapped Arrow file that every job, model size and text option shares.

A store is keyed by the audio and the decoding alone. It is written under a temporary name and renamed when whole, so an
interrupted build is never taken for a finished one; a file lock lets two jobs that start together build it once.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b, sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock
from numpy.typing import NDArray
from rich.progress import Progress

from kikitori.audio import DECODER, FULL_SCALE, to_int16, waveform
from kikitori.clips import Clip, Decoded
from kikitori.decoders import Decoders, Refusal
from kikitori.errors import DataError
from kikitori.processes import cores

SCHEMA = pa.schema(
    {
        "name": pa.string(),
        "pcm": pa.large_binary(),
        "samples": pa.int64(),
        "peak": pa.float32(),
        "digest": pa.string(),
        "error": pa.string(),
    }
)
# Clips are decoded and written in runs of this many, which bounds what a build holds in memory.
ROWS_PER_BATCH = 64
# Fewer do not make up for the tenth of a second in which a decoder starts.
CLIPS_PER_DECODER = 16


class Store:
    """The decoded clips of one file, by name. Opening costs no audio: samples are read when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Record batches, not one table: a clip's samples must lie in one buffer to be read without a copy.
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}, a store of decoded clips, is damaged: {error}; delete it") from error
        self.decoded: dict[str, Decoded] = {}
        self._places: dict[str, tuple[int, int]] = {}
        for b, batch in enumerate(self._batches):
            facts = batch.select(["name", "samples", "peak", "digest", "error"]).to_pylist()
            for i, row in enumerate(facts):
                name = row.pop("name")
                self.decoded[name] = Decoded(**row)
                self._places[name] = (b, i)

    def __reduce__(self) -> tuple[type["Store"], tuple[Path]]:
        """A loader's worker that is spawned maps the file itself, instead of being sent all audio."""
        return Store, (self.path,)

    def pcm(self, name: str) -> NDArray[np.int16]:
        """(samples,) int16 at 16 kHz of one clip, a view into the mapped file."""
        batch, row = self._places[name]
        return np.frombuffer(self._batches[batch].column("pcm")[row].as_buffer(), np.int16)


def key(clips: Sequence[Clip]) -> str:
    """What a store is named by: the decoder and each clip's audio, whatever the order, text or split."""
    digest = sha256(f"{DECODER}\n{torch.__version__}\n".encode())
    for line in sorted(f"{clip.name}\t{clip.identity}\n" for clip in clips):
        digest.update(line.encode())
    return digest.hexdigest()[:24]


def build(clips: Sequence[Clip], folder: Path, progress: Progress, workers: int | None = None) -> Store:
    """The store of these clips: opened where it exists, decoded on all cores where it does not.

    Raises DataError where the folder cannot be written. A clip that cannot be decoded is stored as its error.
    """
    unique = sorted({clip.name: clip for clip in clips}.values(), key=lambda clip: clip.name)
    path = folder / f"{key(unique)}.arrow"
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                if not path.exists():
                    _write(unique, path, progress, workers or cores())
    except OSError as error:
        raise DataError(
            f"the store of decoded clips cannot be written: {error}; set KIKITORI_CACHE elsewhere"
        ) from error
    return Store(path)


def _write(clips: list[Clip], path: Path, progress: Progress, workers: int) -> None:
    for left in path.parent.glob(f"{path.stem}.*.partial"):  # by a build that was killed
        left.unlink()
    partial = path.with_suffix(f".{os.getpid()}.partial")
    task = progress.add_task("decoding clips", total=len(clips))
    try:
        with partial.open("wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
            for rows in _decoded(clips, workers):
                writer.write_batch(pa.RecordBatch.from_pylist(rows, SCHEMA))
                progress.advance(task, len(rows))
            writer.close()
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def _decoded(clips: list[Clip], workers: int) -> Iterator[list[dict]]:
    """Rows of the store. A thread a decoder suffices: resampling and hashing run outside Python's lock."""
    workers = min(workers, 1 + len(clips) // CLIPS_PER_DECODER)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with Decoders(workers) as decoders, ThreadPoolExecutor(workers) as pool:
            for i in range(0, len(clips), ROWS_PER_BATCH):
                yield list(pool.map(partial(_row, decoders), clips[i : i + ROWS_PER_BATCH]))
    finally:
        torch.set_num_threads(threads)


def _row(decoders: Decoders, clip: Clip) -> dict:
    nothing = {"name": clip.name, "pcm": b"", "samples": 0, "peak": 0.0, "digest": ""}
    try:
        audio = clip.source if isinstance(clip.source, Path) else clip.source()
    except FileNotFoundError:
        return {**nothing, "error": "missing"}
    except OSError as error:  # the words alone: its path may name somebody's home
        return {**nothing, "error": error.strerror or type(error).__name__}
    try:
        samples, rate = decoders(audio)
    except Refusal as error:
        return {**nothing, "error": str(error.args[0])}
    pcm = to_int16(waveform(samples, rate))
    return {
        "name": clip.name,
        "pcm": pcm.tobytes(),
        "samples": len(pcm),
        "peak": float(np.abs(pcm.astype(np.int32)).max(initial=0)) / FULL_SCALE,
        "digest": blake2b(pcm.tobytes(), digest_size=16).hexdigest(),
        "error": "",
    }
