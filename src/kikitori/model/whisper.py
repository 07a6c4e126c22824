"""A Whisper model with its processor: generation settings, windows, saving, and an encoder for any window length."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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

from kikitori.model.processor import WINDOW_KEY, Processor
from kikitori.model.window import Window

# Half of the decoder's context, as in Whisper's own decoding: the other half may hold a prompt.
MAX_NEW_TOKENS = 225
# Log-Mel frames that a CPU encodes at a time without gradients. Larger batches only add memory traffic: on two cores
# whisper-base takes 2.0 s for 64 clips of 6 s at once and 1.35 s in parts of ten, 3.7 and 2.9 s for 16 clips of 30 s.
CPU_FRAMES = 6_000
# Attributes of a generation config that `Whisper.configure_generation` sets.
GENERATION_KEYS = ("max_new_tokens", "num_beams", "max_tokens_per_s")


@dataclass(eq=False)
class Whisper:
    """A model and its processor.

    arguments: the plain arguments of `load_whisper` or `build_whisper` that created it, with `builder` ("load" or
    "build"). notes: on the choice of language and task, for results. The window and the generation settings are
    changed in place, like the weights by training.
    """

    model: WhisperForConditionalGeneration
    processor: Processor
    arguments: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def recipe(self) -> dict[str, Any]:
        """Plain values for `rebuild_whisper`, stored in checkpoints: all but the weights."""
        generation = {key: getattr(self.model.generation_config, key, None) for key in GENERATION_KEYS}
        return {**self.arguments, "generation": generation, "window": self.processor.window.as_plain()}

    def set_window(self, window: Window) -> None:
        """Changes how far clips are padded; it is saved with the model."""
        self.processor = replace(self.processor, window=window)
        setattr(self.model.config, WINDOW_KEY, window.as_plain())

    def configure_generation(
        self, max_new_tokens: int | None, num_beams: int | None, max_tokens_per_s: float | None = None
    ) -> None:
        """Changes the model's generation config, which is saved with the model. None keeps a setting.

        num_beams: 1 for greedy decoding. max_tokens_per_s: see `max_new_tokens_for`; only kikitori's greedy decoding
        uses it. inf removes the limit.
        """
        config = self.model.generation_config
        room = self.processor.max_label_tokens - len(self.processor.prefix)
        config.max_new_tokens = min(max_new_tokens or config.max_new_tokens or MAX_NEW_TOKENS, room)
        config.num_beams = num_beams or config.num_beams or 1
        rate = max_tokens_per_s or getattr(config, "max_tokens_per_s", None)
        config.max_tokens_per_s = None if rate is None or isinf(rate) else rate

    def max_new_tokens_for(self, seconds: Sequence[float]) -> list[int]:
        """Returns the maximum number of tokens to generate for clips of these durations in seconds.

        Each clip gets one second more than its duration. A model that misses the end of a clip repeats itself up to the
        maximum, which takes as long as all other clips of a batch; nobody speaks that many tokens in the time.
        """
        config = self.model.generation_config
        limit, rate = config.max_new_tokens, config.max_tokens_per_s
        return [min(limit, ceil(rate * (s + 1))) if rate else limit for s in seconds]

    def save(self, folder: Path) -> None:
        """Writes a folder that `from_pretrained` and transformers' speech recognition pipeline can load."""
        processor = self.processor
        extractor = WhisperFeatureExtractor(processor.num_mel_bins, chunk_length=round(processor.window_s))
        WhisperProcessor(extractor, processor.tokenizer).save_pretrained(folder)
        self.model.save_pretrained(folder)


def check_whisper(given: Any, caller: str) -> None:
    """Raises TypeError with the remedy unless `given` is a Whisper. caller: what takes it, such as `transcribe`."""
    if isinstance(given, Whisper):
        return
    name, remedy = type(given).__name__, "pass what kikitori.load_whisper or kikitori.build_whisper returns"
    if isinstance(given, str | Path):
        name, remedy = f"the {name} {str(given)!r}", f"pass kikitori.load_whisper({str(given)!r})"
    elif isinstance(getattr(given, "whisper", None), Whisper):
        remedy = "pass module.whisper"
    raise TypeError(f"{caller} takes a Whisper, got {name}; {remedy}")


def encode(model: WhisperForConditionalGeneration, input_features: Tensor) -> Tensor:
    """Computes the encoder's output (batch, positions, d_model) for (batch, mels, frames), frames even.

    In the full window it equals the stock encoder's, which supports no other length. A shorter window uses the first
    positional embeddings.
    """
    if torch.is_grad_enabled() or input_features.device.type != "cpu":
        return _encode(model, input_features)
    batch_size = max(1, CPU_FRAMES // input_features.shape[2])
    return torch.cat([_encode(model, part) for part in input_features.split(batch_size)])


def _encode(model: WhisperForConditionalGeneration, input_features: Tensor) -> Tensor:
    encoder = model.model.encoder
    # SpecAugment works in place, so it gets a copy: after running out of memory, a step uses the same features again.
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
