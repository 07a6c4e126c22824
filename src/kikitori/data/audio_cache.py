"""Cached decoded audio: 16 kHz int16 in one memory-mapped Arrow file, shared by all jobs, model sizes and text options.

The file name is a hash of the audio and the decoder. A file is written under a temporary name and renamed when it is
complete, so an interrupted build is never mistaken for a finished one. A file lock makes jobs that start at the same
time build it once.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b, sha256
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock
from numpy.typing import NDArray
from rich.progress import Progress
from xxhash import xxh3_64_digest

from kikitori.audio import waveform
from kikitori.audio.decoder_pool import AudioWorkerError, Decoders
from kikitori.audio.formats import AudioError
from kikitori.audio.waveform import DECODER, FULL_SCALE, SAMPLE_RATE
from kikitori.corpora.types import Clip, Decoded
from kikitori.runtime.errors import DataError
from kikitori.runtime.files import atomic_write
from kikitori.runtime.paths import check_owner, private_folder
from kikitori.runtime.processes import cores

# Facts about a clip, then its samples. The digest identifies a recording; the checksum detects damage on disk, in a
# hundredth of the time, so that it can be verified at every read.
FACTS = {"name": pa.string(), "samples": pa.int64(), "peak": pa.float32(), "digest": pa.string(), "error": pa.string()}
SCHEMA = pa.schema({**FACTS, "checksum": pa.binary(8), "pcm": pa.large_binary()})
# Part of a file's name: increment it whenever the above changes.
FORMAT = 2
# Clips are written in record batches of at most this size, which bounds the memory of a build.
ROWS_PER_BATCH = 64
BYTES_PER_BATCH = 2**26
# A decoder process takes a tenth of a second to start, which fewer clips than this do not save.
CLIPS_PER_DECODER = 64
NO_SAMPLES = np.empty(0, np.int16)


class AudioCache:
    """The decoded clips of one file, by name. Opening reads no audio; samples are read on access.

    Raises DataError if the file is truncated, or differs in any way from what was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.decoded: dict[str, Decoded] = {}
        self._places: dict[str, tuple[int, int]] = {}
        # Record batches, not one table: a clip's samples must lie in one buffer to be read without a copy.
        self._batches: list[pa.RecordBatch] = []
        try:
            check_owner(path)
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            if reader.schema != SCHEMA:
                raise self._damaged("its columns are not those that were written")
            for b in range(reader.num_record_batches):
                batch, seal = reader.get_batch_with_custom_metadata(b)
                batch.validate(full=True)  # an offset must not lead out of the file
                rows = batch.select([*FACTS, "checksum"]).to_pylist()
                if dict(seal or {}).get(b"facts") != _seal(rows):
                    raise self._damaged(f"its rows from {len(self.decoded)} on differ from those written")
                self._batches.append(batch)
                for i, row in enumerate(rows):
                    self.decoded[row["name"]] = Decoded(**{key: row[key] for key in FACTS if key != "name"})
                    self._places[row["name"]] = (b, i)
        except (pa.ArrowException, OSError, ValueError, KeyError, RecursionError) as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, reason: str) -> DataError:
        return DataError(f"{self.path}, a cache of decoded audio, is damaged: {reason}; delete it")

    def __reduce__(self) -> tuple[type["AudioCache"], tuple[Path]]:
        """A spawned loader worker maps the file itself, instead of receiving a copy of all audio."""
        return AudioCache, (self.path,)

    def pcm(self, name: str) -> NDArray[np.int16]:
        """(samples,) int16 at 16 kHz of one clip, a view of the mapped file."""
        b, row = self._places[name]
        batch = self._batches[b]
        audio = batch.column("pcm")[row].as_buffer()
        if xxh3_64_digest(audio) != batch.column("checksum")[row].as_py():
            raise self._damaged(f"the samples of {name} differ from those written")
        return np.frombuffer(audio, np.int16)


def _seal(rows: list[dict]) -> bytes:
    """Checksum of all columns of a batch except the samples."""
    return xxh3_64_digest(repr(rows).encode())


def key(clips: Sequence[Clip]) -> str:
    """The name of a cache file: a hash of the decoder and each clip's audio, independent of order, text and split."""
    digest = sha256(f"{FORMAT}\n{DECODER}\n{torch.__version__}\n".encode())
    for line in sorted(f"{clip.name}\t{clip.identity}\n" for clip in clips):
        digest.update(line.encode())
    return digest.hexdigest()[:24]


def build_audio_cache(
    clips: Sequence[Clip], folder: Path, progress: Progress, workers: int | None = None
) -> AudioCache:
    """Opens the cache of these clips, or decodes them on all cores.

    A clip that cannot be decoded is stored with its error. Raises DataError if the folder cannot be written.
    """
    unique = sorted({clip.name: clip for clip in clips}.values(), key=lambda clip: clip.name)
    path = folder / f"{key(unique)}.arrow"
    try:
        if not path.exists():
            private_folder(folder)
            with FileLock(path.with_suffix(".lock")):
                if not path.exists():
                    _write(unique, path, progress, workers or cores())
    except AudioWorkerError as error:
        raise DataError(str(error)) from error
    except OSError as error:
        raise DataError(
            f"the cache of decoded audio cannot be written: {error}; set KIKITORI_CACHE to another folder"
        ) from error
    cache = AudioCache(path)
    if cache.decoded.keys() != {clip.name for clip in unique}:
        raise cache._damaged("it holds other clips than those written")
    return cache


def _write(clips: list[Clip], path: Path, progress: Progress, workers: int) -> None:
    task = progress.add_task("decoding clips", total=len(clips))
    with atomic_write(path) as file, pa.ipc.new_file(file, SCHEMA) as writer:
        for rows in _decoded(clips, workers):
            batch = pa.RecordBatch.from_pylist(rows, SCHEMA)
            # Of the values as they will be read: storing a peak as float32, for example, rounds it.
            seal = _seal(batch.select([*FACTS, "checksum"]).to_pylist())
            writer.write_batch(batch, {b"facts": seal})
            progress.advance(task, len(rows))


def _decoded(clips: list[Clip], workers: int) -> Iterator[list[dict]]:
    """Yields the rows of the cache. One thread per decoder suffices: resampling and hashing release Python's lock."""
    workers = min(workers, 1 + len(clips) // CLIPS_PER_DECODER)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows: list[dict] = []
        for row in _rows(clips, workers):
            rows.append(row)
            if len(rows) == ROWS_PER_BATCH or sum(len(row["pcm"]) for row in rows) >= BYTES_PER_BATCH:
                yield rows
                rows = []
        if rows:
            yield rows
    finally:
        torch.set_num_threads(threads)


def _rows(clips: Sequence[Clip], workers: int) -> Iterator[dict]:
    """Yields a row per clip, in order. Few recordings are decoded ahead: each may last hours."""
    with Decoders(workers) as decoders, ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[list[dict]]] = deque()
        # The parts of a recording have neighbouring names; it is decoded once.
        for _, parts in groupby(clips, lambda clip: clip.source if isinstance(clip.source, Path) else clip.name):
            ahead.append(pool.submit(_recording, decoders, list(parts)))
            if len(ahead) > 2 * workers:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()


def _recording(decoders: Decoders, clips: Sequence[Clip]) -> list[dict]:
    """The rows of clips that are parts of one recording, or of one clip that is all of it."""
    source = clips[0].source
    try:
        pcm = decoders(source if isinstance(source, Path) else source(), waveform.pcm)
    except FileNotFoundError:
        return [_row(clip, NO_SAMPLES, "missing") for clip in clips]
    except OSError as error:  # without its path, which may name a user's home
        return [_row(clip, NO_SAMPLES, error.strerror or type(error).__name__) for clip in clips]
    except AudioError as error:
        return [_row(clip, NO_SAMPLES, str(error.args[0])) for clip in clips]
    return [_row(clip, pcm[_samples(clip)]) for clip in clips]


def _samples(clip: Clip) -> slice:
    """The samples of a clip in its recording."""
    start_s, end_s = clip.part or (0.0, None)
    return slice(round(start_s * SAMPLE_RATE), None if end_s is None else round(end_s * SAMPLE_RATE))


def _row(clip: Clip, pcm: NDArray[np.int16], error: str = "") -> dict:
    # Not a view: pyarrow would never free it.
    audio = pcm.tobytes()
    return {
        "name": clip.name,
        "pcm": audio,
        "samples": len(pcm),
        "peak": max(int(pcm.max(initial=0)), -int(pcm.min(initial=0))) / FULL_SCALE,
        "digest": "" if error else blake2b(audio, digest_size=16).hexdigest(),
        "checksum": xxh3_64_digest(audio),
        "error": error,
    }
