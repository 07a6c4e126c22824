"""Generates the text of encoder outputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import nan

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from kikitori.inference.greedy import greedy
from kikitori.model.whisper import Whisper

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
