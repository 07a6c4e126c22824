"""Cross-entropy over real tokens alone, in chunks, so that no tensor of batch x tokens x 51,865 words is ever whole."""

import torch
from torch import Tensor
from torch.nn import Linear
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import shift_tokens_right

from kikitori.data.collate import IGNORE_INDEX

# 1,024 tokens' logits over Whisper's vocabulary are 212 MB in fp32, and their gradient as much.
TOKENS_AT_ONCE = 1024


def clip_losses(model: WhisperForConditionalGeneration, encoder_states: Tensor, labels: Tensor) -> Tensor:
    """(batch,): the sum of the cross-entropies of each clip's supervised tokens.

    encoder_states: (batch, positions, d_model). labels: (batch, tokens), without the start token; -100 is padding.
    The model's own shift puts the start token in front of the decoder's input.
    """
    config, supervised = model.config, labels != IGNORE_INDEX
    inputs = shift_tokens_right(labels, config.pad_token_id, config.decoder_start_token_id)
    decoded = model.model.decoder(input_ids=inputs, encoder_hidden_states=encoder_states, use_cache=False)
    losses = token_losses(decoded.last_hidden_state[supervised], model.proj_out, labels[supervised])
    sums = torch.zeros(len(labels), device=losses.device)
    return sums.index_add(0, supervised.nonzero()[:, 0], losses)


def token_losses(states: Tensor, projection: Linear, targets: Tensor) -> Tensor:
    """(tokens,) float32: the cross-entropy of each of (tokens, d_model) against its target.

    Where there are more than a chunk's, a chunk's logits are computed again for its gradient instead of being kept.
    """
    if len(targets) <= TOKENS_AT_ONCE:
        return _losses(states, projection, targets)
    chunks = zip(states.split(TOKENS_AT_ONCE), targets.split(TOKENS_AT_ONCE), strict=True)
    return torch.cat([checkpoint(_losses, s, projection, t, use_reentrant=False) for s, t in chunks])


def _losses(states: Tensor, projection: Linear, targets: Tensor) -> Tensor:
    return cross_entropy(projection(states).float(), targets, reduction="none")
