"""Cross-entropy over supervised tokens only, in chunks: the tensor of batch x tokens x 51,865 logits never exists."""

import torch
from torch import Tensor
from torch.nn import Linear
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import Cache, EncoderDecoderCache, WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import shift_tokens_right

from kikitori.data.collate import IGNORE_INDEX
from kikitori.inference.greedy import CrossAttentionCache
from kikitori.runtime.errors import check_below_one

# The logits of 1,024 tokens over Whisper's vocabulary take 212 MB in fp32, and their gradient the same.
TOKENS_AT_ONCE = 1024


def check_label_smoothing(label_smoothing: float) -> None:
    """Raises ConfigError for a share that is not from 0 to below 1."""
    check_below_one("loss", {"label_smoothing": label_smoothing})


def clip_losses(
    model: WhisperForConditionalGeneration,
    encoder_states: Tensor,
    labels: Tensor,
    num_tokens: int | None = None,
    decoder_input_ids: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """(batch,): the summed cross-entropy of each clip's supervised tokens.

    encoder_states: (batch, positions, d_model). labels: (batch, tokens), without the start token; -100 is padding.
    num_tokens: the number of supervised ones. Without it they are counted, for which the CPU waits for the GPU.
    decoder_input_ids: (batch, tokens), of clips with prompts, which have no loss. Without them, the model's own shift
    inserts the start token in front of the labels. label_smoothing: the share of each target that is spread evenly over
    the vocabulary, as in torch's cross_entropy.
    """
    config, supervised = model.config, labels.flatten() != IGNORE_INDEX
    inputs = decoder_input_ids
    if inputs is None:
        inputs = shift_tokens_right(labels, config.pad_token_id, config.decoder_start_token_id)
    # Without a cache the decoder looks for packed sequences, and the CPU waits for the answer. This one copies nothing.
    # A checkpointed layer, which runs twice, takes none.
    checkpointed = model.model.decoder.layers[0].gradient_checkpointing
    cache = None if checkpointed else EncoderDecoderCache(_references(), _references())
    decoded = model.model.decoder(inputs, encoder_hidden_states=encoder_states, past_key_values=cache, use_cache=False)
    count = int(supervised.sum()) if num_tokens is None else num_tokens
    places = supervised.nonzero_static(size=count)[:, 0]
    states = decoded.last_hidden_state.flatten(0, 1).index_select(0, places)
    losses = token_losses(states, model.proj_out, labels.flatten().index_select(0, places), label_smoothing)
    return torch.zeros(len(labels), device=losses.device).index_add(0, places // labels.shape[1], losses)


def _references() -> Cache:
    return Cache(layer_class_to_replicate=CrossAttentionCache)


def token_losses(states: Tensor, projection: Linear, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """(tokens,) float32: the cross-entropy of each row of (tokens, d_model) against its target.

    With more tokens than one chunk, each chunk's logits are recomputed for the gradient instead of being kept.
    """
    if len(targets) <= TOKENS_AT_ONCE:
        return _losses(states, projection, targets, label_smoothing)
    chunks = zip(states.split(TOKENS_AT_ONCE), targets.split(TOKENS_AT_ONCE), strict=True)
    return torch.cat([checkpoint(_losses, s, projection, t, label_smoothing, use_reentrant=False) for s, t in chunks])


def _losses(states: Tensor, projection: Linear, targets: Tensor, label_smoothing: float) -> Tensor:
    logits = projection(states).float()
    return cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
