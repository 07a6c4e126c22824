"""A Whisper with its front end: load a pretrained one, build a micro one from random weights, freeze, save."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, isinf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout, gelu
from transformers import (
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

from kikitori.model.processor import WINDOW, Processor
from kikitori.model.window import Window

# Half of the decoder's context, as Whisper's own decoding has it: the other half may hold a prompt.
MAX_NEW_TOKENS = 225
# Log-Mel frames that a CPU encodes at once where it only reads; more have nothing but the memory to fetch. On two cores
# whisper-base takes 2.0 s for 64 clips in 6 s at once and 1.35 s in parts of ten, 3.7 and 2.9 s for 16 clips in 30 s.
CPU_FRAMES = 6_000


@dataclass(frozen=True)
class Whisper:
    """A model with its front end. `recipe` holds the plain arguments that build the same model again."""

    model: WhisperForConditionalGeneration
    processor: Processor
    recipe: dict[str, Any]

    def configure_generation(
        self, max_new_tokens: int | None, num_beams: int | None, max_tokens_per_s: float | None = None
    ) -> None:
        """How this model writes from now on, here and wherever its folder is loaded: greedily with one beam.

        max_tokens_per_s: see `caps`; only this code knows it, and no beam search does; inf is no such bound. None
        leaves a setting as the model has it.
        """
        config = self.model.generation_config
        room = self.processor.max_label_tokens - len(self.processor.prefix)
        config.max_new_tokens = min(max_new_tokens or config.max_new_tokens or MAX_NEW_TOKENS, room)
        config.num_beams = num_beams or config.num_beams or 1
        rate = max_tokens_per_s or getattr(config, "max_tokens_per_s", None)
        config.max_tokens_per_s = None if rate is None or isinf(rate) else rate
        limits = {key: getattr(config, key) for key in ("max_new_tokens", "num_beams", "max_tokens_per_s")}
        self.recipe["generation"] = limits

    def max_new_tokens_for(self, seconds: Sequence[float]) -> list[int]:
        """The tokens, at most, that are written for clips of so many seconds.

        A clip is granted a second more than it has. What nobody could say in its time is the babble of a model that
        does not know the end, and takes as long to write as all the others of a batch.
        """
        config = self.model.generation_config
        most, rate = config.max_new_tokens, config.max_tokens_per_s
        return [min(most, ceil(rate * (s + 1))) if rate else most for s in seconds]

    def with_window(self, window: Window) -> "Whisper":
        """The same model, whose clips are heard in these windows, here and wherever its folder is loaded."""
        setattr(self.model.config, WINDOW, window.as_plain())
        recipe = {**self.recipe, "window": window.as_plain()}
        return Whisper(self.model, replace(self.processor, window=window), recipe)

    def save(self, folder: Path) -> None:
        """Write a folder that `from_pretrained` and transformers' speech recognition pipeline load."""
        processor = self.processor
        extractor = WhisperFeatureExtractor(processor.num_mel_bins, chunk_length=round(processor.window_s))
        WhisperProcessor(extractor, processor.tokenizer).save_pretrained(folder)
        self.model.save_pretrained(folder)


def encode(model: WhisperForConditionalGeneration, input_features: Tensor) -> Tensor:
    """(batch, positions, d_model): the encoder's states of (batch, mels, frames), of any even number of frames.

    Equal to the stock encoder's in the whole window, the only one that it takes; a shorter one has the first positions.
    """
    if torch.is_grad_enabled() or input_features.device.type != "cpu":
        return _encode(model, input_features)
    at_once = max(1, CPU_FRAMES // input_features.shape[2])
    return torch.cat([_encode(model, some) for some in input_features.split(at_once)])


def _encode(model: WhisperForConditionalGeneration, input_features: Tensor) -> Tensor:
    encoder = model.model.encoder
    # SpecAugment, where it is asked for; in place, so of a copy: a step that did not fit the memory is taken again.
    features = model.model._mask_input_features(
        input_features.clone() if model.config.apply_spec_augment else input_features
    )
    states = gelu(encoder.conv2(gelu(encoder.conv1(features)))).permute(0, 2, 1)
    states = states + encoder.embed_positions.weight[: states.shape[1]]
    states = dropout(states, encoder.dropout, encoder.training)
    for layer in encoder.layers:
        if not (encoder.training and encoder.layerdrop and torch.rand(()) < encoder.layerdrop):
            states = layer(states, None)
    return encoder.layer_norm(states)
