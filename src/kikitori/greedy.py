"""Greedy decoding: what `WhisperForConditionalGeneration.generate` writes with one beam, in less time."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, WhisperForConditionalGeneration
from transformers.cache_utils import DynamicLayer


@torch.inference_mode(False)
@torch.no_grad()
def greedy(
    model: WhisperForConditionalGeneration,
    encoder_states: Tensor,
    prefix: Sequence[int],
    max_new_tokens: Sequence[int],
) -> list[list[int]]:
    config, decoder = model.generation_config, model.model.decoder
    caps = [min(cap, model.config.max_target_positions - len(prefix)) for cap in max_new_tokens]
    rows: list[list[int]] = [[] for _ in caps]
    device = encoder_states.device
    never = torch.tensor(config.suppress_tokens or [], dtype=torch.long, device=device)
    not_first = torch.tensor(config.begin_suppress_tokens or [], dtype=torch.long, device=device)
    cache = _cache(len(decoder.layers), len(prefix) + max(caps, default=0))
    active = list(range(len(rows)))
    tokens = torch.tensor([list(prefix)] * len(rows), device=device)
    first = True
    while active:
        states = decoder(tokens, encoder_hidden_states=encoder_states, past_key_values=cache, use_cache=True)
        logits = model.proj_out(states.last_hidden_state[:, -1]).float()
        logits.index_fill_(1, never, -torch.inf)
        if first:
            logits.index_fill_(1, not_first, -torch.inf)
            first = False
        tokens = logits.argmax(dim=1, keepdim=True)
        chosen = tokens[:, 0].tolist()
        ended = []
        for i, (row, token) in enumerate(zip(active, chosen)):
            if token == config.eos_token_id:
                ended.append(i)
            else:
                rows[row].append(token)
                if len(rows[row]) == caps[row]:
                    ended.append(i)
        if ended:
            n = len(active) - len(ended)
            holes = [i for i in ended if i < n]
            moved = [i for i in range(n, len(active)) if i not in ended]
            for half in (cache.self_attention_cache, cache.cross_attention_cache):
                for layer in half.layers:
                    layer.move(moved, holes, n)
            for t in [tokens]:
                t[holes] = t[moved]
            tokens = tokens[:n]
            for h, m in zip(holes, moved):
                active[h] = active[m]
            active = active[:n]
    return rows


class Layer(DynamicLayer):
    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.is_initialized = True
            if not self.room:
                self.keys, self.values = key_states, value_states
                return key_states, value_states
            shape = list(key_states.shape)
            shape[2] = self.room
            self.key_store, self.value_store = key_states.new_empty(shape), value_states.new_empty(shape)
            self.length = 0
        end = self.length + key_states.shape[2]
        self.key_store[:, :, self.length : end] = key_states
        self.value_store[:, :, self.length : end] = value_states
        self.length = end
        self.keys, self.values = self.key_store[:, :, :end], self.value_store[:, :, :end]
        return self.keys, self.values

    def move(self, moved, holes, n):
        self.keys[holes] = self.keys[moved]
        self.values[holes] = self.values[moved]
        self.keys, self.values = self.keys[:n], self.values[:n]
        if self.room:
            self.key_store, self.value_store = self.key_store[:n], self.value_store[:n]


def _cache(layers, room):
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    for half, r in ((cache.self_attention_cache, room), (cache.cross_attention_cache, 0)):
        half.layers = [Layer(r) for _ in range(layers)]
        half.layer_class_to_replicate = None
    cache.is_updated = dict.fromkeys(range(layers), False)
    return cache
