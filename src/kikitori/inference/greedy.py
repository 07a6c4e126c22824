"""Greedy decoding: the tokens of `WhisperForConditionalGeneration.generate` with one beam, in less time.

Three things make it faster. A row that has ended leaves the batch, so one that repeats itself up to its maximum delays
no other; generate computes every row until the last has ended. Under autocast, weights are cast once instead of for
every token. And little Python code runs between two tokens, which with a small model takes most of the time.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache, WhisperForConditionalGeneration
from transformers.cache_utils import DynamicLayer

# A row loops if its last LOOP_TOKENS are LOOP_REPEATS units or more.
LOOP_TOKENS, LOOP_REPEATS = 48, 4


@dataclass
class Row:
    """The new tokens of one clip, without the prefix and the end token.

    ended: whether it ended with the end token; otherwise it was cut off. spoken_s: the seconds of its tokens.
    logprob: the sum of the log probabilities of its tokens and of the end token; logprobs: those of its tokens.
    no_speech: the probability of the no-speech token in place of the language.
    """

    no_speech: float
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    spoken_s: float = 0.0
    logprob: float = 0.0
    logprobs: list[float] = field(default_factory=list)


def greedy(
    model: WhisperForConditionalGeneration,
    encoder_states: Tensor,
    prefix: Sequence[int] | Sequence[Sequence[int]],
    max_new_tokens: int,
    token_s: Callable[[int], float] = lambda token: 0.0,
    seconds: Sequence[float] | None = None,
    stop_loops: bool = False,
    rule: Callable[[list[list[int]], Tensor], None] | None = None,
) -> list[Row]:
    """Generates the tokens of each row.

    model: in eval mode. Only suppress_tokens, begin_suppress_tokens, eos_token_id (one) and no_timestamps_token_id,
    before which the no-speech token is in the vocabulary, of its generation config are used. encoder_states: (batch,
    positions, d_model), any number of positions. prefix: the first tokens of every row, with the start token; or those
    of each row, all with the start token at the same place. rule: called for each token with the tokens of the rows
    that have not ended and their logits (rows, vocabulary), which it may lower in place.
    A row is cut off after max_new_tokens, which count the end token as generate does and are limited by the decoder's
    context, or once its tokens take more than its `seconds`, by `token_s`, or with `stop_loops` once it repeats itself.

    In fp32, a row equals token by token what generate returns for it, alone or in any batch. Sums are rounded
    differently in batches of another size, so only two logits that agree in about six digits could give another token.
    In half precision such near ties occur, here and in generate: rows may then differ between batches.
    Timestamps are ordinary tokens here, while generate stops at a pair of them and continues from the second one.
    """
    if not len(encoder_states):
        return []
    config, decoder, device = model.generation_config, model.model.decoder, encoder_states.device
    prefixes = torch.tensor(prefix).expand(len(encoder_states), -1)
    first = prefix[0] if isinstance(prefix[0], Sequence) else prefix
    start = list(first).index(model.config.decoder_start_token_id)
    limit = min(max_new_tokens, model.config.max_target_positions - prefixes.shape[1])
    suppressed = torch.tensor(config.suppress_tokens or [], dtype=torch.long, device=device)
    suppressed_first = torch.tensor(config.begin_suppress_tokens or [], dtype=torch.long, device=device)
    cache = EncoderDecoderCache(DynamicCache(), Cache(layer_class_to_replicate=CrossAttentionCache))
    rows: list[Row] = []
    active = list(range(len(encoder_states)))  # the row at each position of the batch
    tokens = prefixes.contiguous().to(device)
    with _weights_cast_once(device.type):
        for length in range(1, limit + 1):
            states = decoder(tokens, encoder_hidden_states=encoder_states, past_key_values=cache, use_cache=True)
            if length == 1:
                at_start = model.proj_out(states.last_hidden_state[:, start]).float().softmax(dim=1)
                rows = [Row(p) for p in at_start[:, config.no_timestamps_token_id - 1].tolist()]
            # In float32 like in generate, but only of the last position: generate computes the whole prefix.
            logits = model.proj_out(states.last_hidden_state[:, -1]).float()
            logits.index_fill_(1, suppressed, -torch.inf)
            if length == 1:
                logits.index_fill_(1, suppressed_first, -torch.inf)
            if rule:
                rule([rows[index].tokens for index in active], logits)
            tokens = logits.argmax(dim=1, keepdim=True)
            logprobs = logits.log_softmax(dim=1).gather(1, tokens)
            ended = set()
            for index, (token, logprob) in enumerate(zip(tokens[:, 0].tolist(), logprobs[:, 0].tolist(), strict=True)):
                row = rows[active[index]]
                row.logprob += logprob
                if token == config.eos_token_id:
                    row.ended = True
                else:
                    row.tokens.append(token)
                    row.logprobs.append(logprob)
                    row.spoken_s += token_s(token)
                too_long = length == limit or (seconds is not None and row.spoken_s > seconds[active[index]])
                if row.ended or too_long or (stop_loops and _loops(row.tokens)):
                    ended.add(index)
            if len(ended) == len(active):
                break
            if ended:
                active, tokens = _drop(ended, active, tokens, cache)
    return rows


def _loops(tokens: list[int]) -> bool:
    """Returns whether the last tokens are a short unit again and again, from which no model finds its way out."""
    last = tokens[-LOOP_TOKENS:]
    periods = range(1, LOOP_TOKENS // LOOP_REPEATS + 1)
    return len(last) == LOOP_TOKENS and any(last[period:] == last[:-period] for period in periods)


class CrossAttentionCache(DynamicLayer):
    """Keys and values of cross-attention, (batch, heads, positions, head_dim), without the stock layer's extra copy."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys, self.values, self.is_initialized = key_states, value_states, True
        return key_states, value_states


@contextmanager
def _weights_cast_once(device: str) -> Iterator[None]:
    """Makes autocast cache the weights it casts, which it does neither under Lightning nor in inference mode."""
    on, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, dtype, on, cache_enabled=True):
        yield


def _drop(ended: set[int], active: list[int], tokens: Tensor, cache: EncoderDecoderCache) -> tuple[list[int], Tensor]:
    """Removes the batch indices in `ended` from the batch and the cache; returns the remaining `active` and `tokens`.

    The last rows move into the gaps, and the batch is cut after them. At most one row moves for each that ended, so
    this always pays off: copying all remaining rows, like `batch_select_indices`, takes as long as several tokens.
    """
    left = len(active) - len(ended)
    gaps = [index for index in sorted(ended) if index < left]
    movers = [index for index in range(left, len(active)) if index not in ended]
    for gap, mover in zip(gaps, movers, strict=True):
        active[gap] = active[mover]
    to, origin = (torch.tensor(indices, dtype=torch.long, device=tokens.device) for indices in (gaps, movers))
    layers = [*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers]
    for part in [tokens, *(states for layer in layers for states in (layer.keys, layer.values))]:
        part[to] = part[origin]
    for layer in layers:
        layer.keys, layer.values = layer.keys[:left], layer.values[:left]
    return active[:left], tokens[:left]
