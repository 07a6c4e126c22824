"""Computes the floating-point operations of a Whisper training step."""

from transformers import WhisperConfig

# A multiplication and an addition.
PER_PRODUCT = 2


def training(config: WhisperConfig, frames: int, tokens: int) -> float:
    """Returns the FLOPs of the forward and backward pass of one clip with `frames` log-Mel frames and `tokens` labels.

    Only matrix products and convolutions count, with 2 FLOPs per multiplication and addition; softmax, norms,
    activations and the optimizer are excluded, as is customary. With T = frames / 2 positions, L tokens, width d,
    feed-forward width f, vocabulary V and m Mels, the forward pass has, in multiplications and additions:

      convolutions            3 m d · 2T  +  3 d² T
      an encoder layer        4 d² T (queries, keys, values, output)  +  2 T² d (attention)  +  2 d f T
      a decoder layer         4 d² L  +  2 L² d  +  2 d f L, and for the encoder's states
                              2 d² L + 2 d² T + 2 L T d
      output projection       d V L

    The backward pass has two such products for each, one for the gradient of the input and one for that of the weights,
    except for the first convolution, whose input needs no gradient. Recomputation is not counted, because training does
    not require it. Attention counts in full, although half of the decoder's is masked.
    """
    first = PER_PRODUCT * 3 * config.num_mel_bins * config.d_model * frames
    return 3 * forward(config, frames, tokens) - first


def forward(config: WhisperConfig, frames: int, tokens: int) -> float:
    """Returns the FLOPs of the forward pass of one clip; see `training`."""
    d, positions = config.d_model, frames // 2
    convolutions = 3 * config.num_mel_bins * d * frames + 3 * d * d * positions
    encoder = 4 * d * d * positions + 2 * positions**2 * d + 2 * d * config.encoder_ffn_dim * positions
    decoder = 4 * d * d * tokens + 2 * tokens**2 * d + 2 * d * config.decoder_ffn_dim * tokens
    cross = 2 * d * d * tokens + 2 * d * d * positions + 2 * tokens * positions * d
    projection = d * config.vocab_size * tokens
    layers = config.encoder_layers * encoder + config.decoder_layers * (decoder + cross)
    return PER_PRODUCT * (convolutions + layers + projection)
