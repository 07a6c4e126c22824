"""Generates the text of encoder outputs, and of sounds by whichever engine runs the model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from math import nan
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.inference.greedy import Row, greedy
from kikitori.model.processor import Processor
from kikitori.model.whisper import Whisper, encode

# Seconds by which the text of a clip may take longer than the clip.
MARGIN_S = 1.0


@dataclass(frozen=True)
class Generated:
    """The text of one clip.

    cut: whether it was cut off by `generation.max_new_tokens` or `generation.max_tokens_per_s`. no_speech: the
    probability that the clip holds no speech; mean_logprob: the mean log probability of the tokens. A beam search gives
    neither (nan). tokens: those of the text, without the end, and logprobs the log probability of each; of a beam
    search, none.
    """

    text: str
    cut: bool
    no_speech: float = nan
    mean_logprob: float = nan
    tokens: Sequence[int] = ()
    logprobs: Sequence[float] = ()


def generate(
    whisper: Whisper,
    encoder_states: Tensor,
    seconds: Sequence[float],
    stop_loops: bool = False,
    languages: Sequence[str | None] | None = None,
) -> list[Generated]:
    """Generates the text of each row of (batch, positions, d_model), as `Whisper.configure_generation` set it.

    seconds: durations of the audio, which limit the text of each row in greedy decoding. stop_loops: whether a row that
    repeats itself is cut off, too. With several beams, `generate` of transformers is used, without either. languages:
    Whisper's code of each row's, None for the processor's.
    """
    processor, model, limit = whisper.processor, whisper.model, whisper.model.generation_config.max_new_tokens
    codes = languages or [None] * len(encoder_states)
    processors = {code: processor.of(code) for code in {*codes}}
    if model.generation_config.num_beams == 1:
        available_s = [s + MARGIN_S for s in seconds]
        prefixes = [processors[code].prefix for code in codes]
        rows = greedy(model, encoder_states, prefixes, limit, whisper.token_s, available_s, stop_loops)
        texts = processor.decode([row.tokens for row in rows])
        return [
            Generated(text, not row.ended, row.no_speech, row.logprob / (len(row.tokens) + 1), row.tokens, row.logprobs)
            for text, row in zip(texts, rows, strict=True)
        ]
    outputs = BaseModelOutput(last_hidden_state=encoder_states)
    own = [processors[code].language for code in codes]
    tokens = model.generate(encoder_outputs=outputs, language=own, task=processor.task)
    lengths = (tokens != processor.tokenizer.eos_token_id).sum(dim=1).tolist()
    return [Generated(text, n >= limit) for text, n in zip(processor.decode(tokens), lengths, strict=True)]


def limited_text(whisper: Whisper, generated: Generated, seconds: float) -> str:
    """The text that greedy decoding would have generated with the model's `max_tokens_per_s`, if it had none."""
    spoken_s = list(accumulate(map(whisper.token_s, generated.tokens)))
    kept = next((n for n, s in enumerate(spoken_s, 1) if s > seconds + MARGIN_S), len(spoken_s))
    return generated.text if kept == len(spoken_s) else whisper.processor.decode([generated.tokens[:kept]])[0]


class Engine(Protocol):
    """What runs a model: `TorchEngine`, or another one with the same results but for rounding."""

    @property
    def processor(self) -> Processor:
        """The model's, in its own language."""

    @property
    def trained_on(self) -> Mapping[str, float] | None:
        """See `Whisper.trained_on`."""

    @property
    def timestamps(self) -> Mapping[str, float] | None:
        """See `Whisper.timestamps`."""

    @property
    def languages(self) -> Sequence[str]:
        """See `Whisper.languages`."""

    def ready(self) -> AbstractContextManager[Any]:
        """Within it, the model is read with."""

    def read(self, clips: Sequence[Tensor], language: str | None) -> list[Generated]:
        """Generates the texts of (samples,) each, which have the same window. language: None for the processor's."""

    def read_window(self, samples: Tensor, prefix: Sequence[int], rule: Callable[..., None]) -> Row:
        """Generates the tokens of (samples,) in the full window, with timestamps. prefix: without no-timestamps."""

    def detect(self, clips: Sequence[Tensor]) -> list[dict[str, float]]:
        """Returns the probability of each language that the model has, by Whisper's code, of (samples,) each."""

    def settings(self) -> dict[str, Any]:
        """Plain values on which the texts depend, besides `processor` and the weights."""

    def weights(self) -> Iterator[bytes | memoryview]:
        """The bytes of all weights."""


@dataclass(frozen=True)
class TorchEngine:
    """Reads with a Whisper itself, on its own device."""

    whisper: Whisper

    @property
    def processor(self) -> Processor:
        return self.whisper.processor

    @property
    def trained_on(self) -> Mapping[str, float] | None:
        return self.whisper.trained_on

    @property
    def timestamps(self) -> Mapping[str, float] | None:
        return self.whisper.timestamps

    @property
    def languages(self) -> Sequence[str]:
        return self.whisper.languages

    @contextmanager
    def ready(self) -> Iterator[None]:
        training = self.whisper.model.training
        self.whisper.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.whisper.model.train(training)

    def read(self, clips: Sequence[Tensor], language: str | None) -> list[Generated]:
        whisper = self.whisper
        if (processor := whisper.processor.of(language)) is not whisper.processor:
            whisper = replace(whisper, processor=processor)
        seconds = [len(clip) / SAMPLE_RATE for clip in clips]
        return generate(whisper, self._states(clips), seconds, stop_loops=True)

    def read_window(self, samples: Tensor, prefix: Sequence[int], rule: Callable[..., None]) -> Row:
        model, available_s = self.whisper.model, [len(samples) / SAMPLE_RATE + MARGIN_S]
        states, limit = self._states([samples], full_window=True), model.generation_config.max_new_tokens
        return greedy(model, states, prefix, limit, self.whisper.token_s, available_s, stop_loops=True, rule=rule)[0]

    def detect(self, clips: Sequence[Tensor]) -> list[dict[str, float]]:
        return language_probabilities(self.whisper, self._states(clips, full_window=True))

    def settings(self) -> dict[str, Any]:
        whisper, config = self.whisper, self.whisper.model.generation_config
        names = ("max_new_tokens", "num_beams", "suppress_tokens", "begin_suppress_tokens")
        found = {name: getattr(config, name) for name in names}
        return {**found, "max_tokens_per_s": whisper.max_tokens_per_s, "dtype": str(whisper.model.dtype)}

    def weights(self) -> Iterator[bytes | memoryview]:
        for name, weight in self.whisper.model.state_dict().items():
            yield name.encode()
            yield weight.detach().cpu().reshape(-1).view(torch.uint8).numpy().data

    def _states(self, clips: Sequence[Tensor], full_window: bool = False) -> Tensor:
        model, processor = self.whisper.model, self.whisper.processor
        features = torch.stack([processor.log_mel(clip, full_window) for clip in clips])
        return encode(model, features.to(model.device, model.dtype))


def engine_of(model: Whisper | Engine) -> Engine:
    """Returns the engine of a Whisper, and any other engine as it is."""
    return TorchEngine(model) if isinstance(model, Whisper) else model


def language_probabilities(whisper: Whisper, states: Tensor) -> list[dict[str, float]]:
    """Returns the probability of each language, among those of the vocabulary, for each row of encoder outputs."""
    model, ids = whisper.model, whisper.model.generation_config.lang_to_id
    start = torch.full((len(states), 1), model.config.decoder_start_token_id, device=states.device)
    decoded = model.model.decoder(start, encoder_hidden_states=states).last_hidden_state[:, 0]
    columns = torch.tensor(list(ids.values()), device=states.device)
    rows = model.proj_out(decoded).float().index_select(1, columns).softmax(dim=1)
    codes = [token.strip("<|>") for token in ids]
    return [dict(zip(codes, row, strict=True)) for row in rows.tolist()]
