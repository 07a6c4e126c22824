"""Cached outputs of a frozen encoder, in one memory-mapped file that all steps, evaluations and trials share.

The file name is a hash of everything that determines the outputs, so a cache is never reused for other inputs.
"""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import WhisperForConditionalGeneration

from kikitori.corpora.types import Split
from kikitori.data.collate import Batch
from kikitori.data.dataset import SpeechDataset
from kikitori.model.processor import FRAMES_PER_POSITION
from kikitori.model.whisper import encode
from kikitori.model.window import Window
from kikitori.runtime.console import progress_bar
from kikitori.runtime.errors import ConfigError, DataError
from kikitori.runtime.files import reserve_file, sync_folder
from kikitori.runtime.paths import check_owner, private_folder
from kikitori.runtime.rng import random_state_kept

log = logging.getLogger(__name__)

# Part of a file's key: increment it whenever the same clip and weights give other states.
FORMAT = 1
# The decoder rounds the states to this type when it first uses them, so nothing is lost.
DTYPES = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


class EncoderCache:
    """The encoder states of some clips, by name: (positions, d_model) each, in one flat file."""

    def __init__(self, path: Path, frames: Mapping[str, int], d_model: int, dtype: torch.dtype) -> None:
        self.path, self.frames, self.d_model, self.dtype = path, frames, d_model, dtype
        self.starts: dict[str, int] = {}
        size = 0
        for name, n in frames.items():
            self.starts[name] = size
            size += n // FRAMES_PER_POSITION * d_model
        self.size = size
        self._flat: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A spawned loader worker maps the file itself."""
        return {**self.__dict__, "_flat": None}

    def __getitem__(self, name: str) -> Tensor:
        if self._flat is None:
            # from_file would create a missing file, filled with zeros.
            if not self.path.exists() or self.path.stat().st_size != self.size * self.dtype.itemsize:
                raise DataError(f"{self.path}, a cache of encoder outputs, is damaged; delete it")
            check_owner(self.path)
            # A shared mapping writes; a cache that somebody else has filled can only be read.
            shared = os.access(self.path, os.W_OK)
            self._flat = torch.from_file(str(self.path), shared=shared, size=self.size, dtype=self.dtype)
        start = self.starts[name]
        positions = self.frames[name] // FRAMES_PER_POSITION
        return self._flat[start : start + positions * self.d_model].view(positions, self.d_model)


def build_encoder_caches(
    trainer: pl.Trainer,
    model: WhisperForConditionalGeneration,
    datasets: Mapping[Split, Iterable[SpeechDataset]],
    make_loader: Callable[[Split, SpeechDataset], DataLoader[Batch]],
    folder: Path,
) -> dict[Split, dict[Window, EncoderCache]]:
    """The caches of every dataset, by split and by the window of its processor.

    make_loader: returns this process's share of a dataset.
    Raises ConfigError if the encoder is trained, or its outputs for a clip vary, and OSError if the folder cannot be
    written.
    """
    check_cacheable(model)
    caches: dict[Split, dict[Window, EncoderCache]] = {}
    for split, of_split in datasets.items():
        log.info("caching the frozen encoder's outputs: %s", split)
        caches[split] = {}
        for dataset in of_split:
            frames = dict(zip((clip.name for clip in dataset.clips), dataset.windows(), strict=True))
            digests = [dataset.audio.decoded[name].digest for name in frames]
            caches[split][dataset.processor.window] = build_encoder_cache(
                trainer, model, make_loader(split, dataset), frames, digests, folder
            )
    return caches


def check_cacheable(model: WhisperForConditionalGeneration) -> None:
    """Raises ConfigError unless the encoder's output for a clip is the same in every step."""
    config = model.config
    if any(p.requires_grad for p in model.model.encoder.parameters()):
        raise ConfigError(
            "data.cache_encoder_outputs=true needs an encoder that is not trained; add model.freeze=encoder"
        )
    random = ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "apply_spec_augment")
    if on := [key for key in random if getattr(config, key)]:
        raise ConfigError(
            f"data.cache_encoder_outputs=true, but model.{on[0]}={getattr(config, on[0])} makes the encoder's outputs "
            "random; set one of the two to false or 0"
        )


def key(model: WhisperForConditionalGeneration, frames: Mapping[str, int], clips: Sequence[str], precision: str) -> str:
    """The name of a cache file. clips: digests of the audio, in the order of `frames`."""
    digest = blake2b(
        f"{FORMAT} {torch.__version__} {precision} {list(frames.items())} {clips}".encode(), digest_size=12
    )
    for parameter in model.model.encoder.state_dict().values():
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def build_encoder_cache(
    trainer: pl.Trainer,
    model: WhisperForConditionalGeneration,
    loader: DataLoader[Batch],
    frames: Mapping[str, int],
    digests: Sequence[str],
    folder: Path,
) -> EncoderCache:
    """Opens the cache of some clips, or computes it, each process its share.

    loader: this process's share of the clips. frames: log-Mel frames of each clip, by name.
    Raises ConfigError on several machines, OSError if the folder cannot be written.
    """
    if trainer.num_nodes > 1:
        raise ConfigError(
            "data.cache_encoder_outputs=true writes to one machine's disk; use trainer.num_nodes=1, or set it to false"
        )
    # Before its first loop, Lightning has not connected the processes yet.
    trainer.strategy.setup_environment()
    precision = str(trainer.precision)
    path = folder / f"{key(model, frames, digests, precision)}.states"
    cache = EncoderCache(path, frames, model.config.d_model, DTYPES.get(precision, torch.float32))
    if trainer.strategy.broadcast(path.exists()):
        return cache
    # Two trials that start at the same time each write a file of their own.
    trial = blake2b(trainer.default_root_dir.encode(), digest_size=8).hexdigest()
    partial = EncoderCache(path.with_suffix(f".{trial}.partial"), frames, cache.d_model, cache.dtype)
    private_folder(folder)
    if trainer.is_global_zero:
        # A disk that fills up under a mapped file kills the process without a message.
        reserve_file(partial.path, cache.size * cache.dtype.itemsize)
    trainer.strategy.barrier()
    try:
        # Whether a run finds a cache or computes it must not change what is drawn after that.
        with random_state_kept():
            _encode_all(trainer, model, loader, partial)
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            with partial.path.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(partial.path, path)
            sync_folder(folder)
    except BaseException:
        partial.path.unlink(missing_ok=True)
        raise
    trainer.strategy.barrier()
    return cache


def _encode_all(
    trainer: pl.Trainer, model: WhisperForConditionalGeneration, loader: DataLoader[Batch], cache: EncoderCache
) -> None:
    """Writes the encoder's output of each clip into a cache, on the Trainer's device and in its precision.

    Without `Trainer.predict`, because a fit may have begun, inside which no other loop can run.
    """
    training, device = model.training, trainer.strategy.root_device
    # Before inference mode begins: weights that are moved in it cannot be trained.
    model.eval().to(device)
    try:
        with torch.inference_mode(), trainer.precision_plugin.forward_context(), progress_bar() as progress:
            task = progress.add_task("encoding", total=len(loader))
            for batch in loader:
                clips = iter(batch["clips"])
                for features in batch["input_features"]:
                    for states in encode(model, features.to(device)).to("cpu", cache.dtype):
                        cache[next(clips)].copy_(states)
                progress.advance(task)
    finally:
        model.train(training)
