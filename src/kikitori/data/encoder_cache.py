"""What a frozen encoder says of each clip, computed once: a memory-mapped file that every step, score and trial shares.

A file is keyed by the encoder's weights, the precision, the windows and the clips, so that it never speaks for others.
"""

import os
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import WhisperForConditionalGeneration

from kikitori.data.collate import Batch
from kikitori.model.processor import FRAMES_PER_POSITION
from kikitori.model.whisper import encode
from kikitori.runtime.errors import ConfigError, DataError
from kikitori.runtime.files import sync_folder

# Part of a file's key: raise it whenever the same clip and weights give other states.
FORMAT = 1
# The decoder's first use of the states rounds them to this in any case, so that nothing is lost.
DTYPES = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


class EncoderCache:
    """The encoder's states of some clips, by name: (positions, d_model) each, in one flat file."""

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
        """A loader's worker that is spawned maps the file itself."""
        return {**self.__dict__, "_flat": None}

    def __getitem__(self, name: str) -> Tensor:
        if self._flat is None:
            # from_file would make what is missing, of zeros.
            if not self.path.exists() or self.path.stat().st_size != self.size * self.dtype.itemsize:
                raise DataError(f"{self.path}, a frozen encoder's states, is damaged; delete it")
            self._flat = torch.from_file(str(self.path), shared=True, size=self.size, dtype=self.dtype)
        start = self.starts[name]
        positions = self.frames[name] // FRAMES_PER_POSITION
        return self._flat[start : start + positions * self.d_model].view(positions, self.d_model)


class EncoderCacheWriter(pl.LightningModule):
    """Lightning's view of the encoder alone: writes what it says of each clip of each batch."""

    def __init__(self, model: WhisperForConditionalGeneration, states: EncoderCache) -> None:
        super().__init__()
        self.model = model
        self.states = states

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        clips = iter(batch["clips"])
        for features in batch["input_features"]:
            for said in encode(self.model, features).to("cpu", self.states.dtype):
                self.states[next(clips)].copy_(said)


def check_cacheable(model: WhisperForConditionalGeneration) -> None:
    """Raise ConfigError unless the encoder says the same of a clip in each step."""
    config = model.config
    if any(p.requires_grad for p in model.model.encoder.parameters()):
        raise ConfigError(
            "data.cache_encoder_outputs=true needs an encoder that is not trained; add model.freeze=encoder"
        )
    changing = ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "apply_spec_augment")
    if on := [key for key in changing if getattr(config, key)]:
        raise ConfigError(
            f"data.cache_encoder_outputs=true, but model.{on[0]}={getattr(config, on[0])} changes what it says"
        )


def key(model: WhisperForConditionalGeneration, frames: Mapping[str, int], clips: Sequence[str], precision: str) -> str:
    """What a file of states is named by. clips: digests of the audio, in the order of `frames`."""
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
    """The states of the clips, opened where they exist, else computed by all processes, each its share of the loader.

    frames: the window of each clip, by name. Raises OSError where the folder cannot be written.
    """
    if trainer.num_nodes > 1:
        raise ConfigError(
            "data.cache_encoder_outputs=true keeps its file on one machine; take trainer.num_nodes=1, or false"
        )
    # Before the first loop the processes do not know each other yet.
    trainer.strategy.setup_environment()
    precision = str(trainer.precision)
    path = folder / f"{key(model, frames, digests, precision)}.states"
    states = EncoderCache(path, frames, model.config.d_model, DTYPES.get(precision, torch.float32))
    if trainer.strategy.broadcast(path.exists()):
        return states
    # Two trials that start together each write one of their own.
    trial = blake2b(trainer.default_root_dir.encode(), digest_size=8).hexdigest()
    partial = EncoderCache(path.with_suffix(f".{trial}.partial"), frames, states.d_model, states.dtype)
    folder.mkdir(parents=True, exist_ok=True)
    if trainer.is_global_zero:
        with partial.path.open("wb") as file:
            # All of it now: a disk that fills up under a mapped file kills the process without a word.
            os.posix_fallocate(file.fileno(), 0, states.size * states.dtype.itemsize)
    trainer.strategy.barrier()
    try:
        trainer.predict(EncoderCacheWriter(model, partial), loader, return_predictions=False)
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
    return states
