"""What the numbers of a model may be, whether they come from its files, from a checkpoint or from arguments.

A model's folder may come from a stranger. Of its configuration only the fields of Whisper are used, and only within
what a Whisper can be, so that no number in it makes a model that is too large or raises an error later.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from transformers import GenerationConfig, WhisperConfig
from transformers.activations import ACT2FN

from kikitori.metrics.languages import LANGUAGES
from kikitori.runtime.errors import ModelError

# Parameters, twice those of the largest Whisper.
MAX_PARAMETERS = 3_000_000_000
MAX_BEAMS = 100


class Rule(NamedTuple):
    """Which values are accepted, and the words for it."""

    accepts: Callable[[Any], bool]
    words: str


def whole(low: int, high: int) -> Rule:
    """A whole number from low to high."""
    return Rule(lambda v: type(v) is int and low <= v <= high, f"a whole number from {low} to {high}")


def number(low: float, high: float) -> Rule:
    """A finite number from low to high."""
    return Rule(lambda v: type(v) in (int, float) and low <= v <= high, f"a number from {low} to {high}")


def list_of(rule: Rule, most: int) -> Rule:
    """A list of at most so many values."""
    accepts = lambda v: isinstance(v, list | tuple) and len(v) <= most and all(map(rule.accepts, v))  # noqa: E731
    return Rule(accepts, f"a list of at most {most}, each {rule.words}")


def dict_of(rule: Rule) -> Rule:
    """An object with values of one kind."""
    accepts = lambda v: isinstance(v, Mapping) and all(map(rule.accepts, v.values()))  # noqa: E731
    return Rule(accepts, f"an object, each value {rule.words}")


def optional(rule: Rule) -> Rule:
    """What a rule accepts, or null."""
    return Rule(lambda v: v is None or rule.accepts(v), f"{rule.words}, or null")


BOOLEAN = Rule(lambda v: isinstance(v, bool), "true or false")
TEXT = Rule(lambda v: isinstance(v, str), "a text")
SHARE, TOKEN = number(0, 1), whole(0, 1_000_000)
TOKENS = optional(list_of(TOKEN, 10_000))

CONFIG: dict[str, Rule] = {
    **dict.fromkeys(
        ("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), whole(1, 256)
    ),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), whole(1, 65_536)),
    **dict.fromkeys(("d_model", "max_target_positions"), whole(1, 16_384)),
    **dict.fromkeys(("num_mel_bins", "median_filter_width"), whole(1, 1_024)),
    # Of 20 ms: a minute. Whisper has 30 s.
    "max_source_positions": whole(1, 3_000),
    **dict.fromkeys(("mask_time_length", "mask_feature_length"), whole(1, 100_000)),
    **dict.fromkeys(("mask_time_min_masks", "mask_feature_min_masks"), whole(0, 100_000)),
    **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop"), SHARE),
    **dict.fromkeys(("decoder_layerdrop", "mask_time_prob", "mask_feature_prob"), SHARE),
    **dict.fromkeys(("scale_embedding", "apply_spec_augment", "tie_word_embeddings", "use_cache"), BOOLEAN),
    "use_weighted_layer_sum": BOOLEAN,
    "is_encoder_decoder": Rule(lambda v: v is True, "true"),
    "classifier_proj_size": whole(1, 65_536),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"), optional(TOKEN)),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), TOKENS),
    "vocab_size": whole(1, 1_000_000),
    "init_std": number(0, 10),
    "activation_function": Rule(lambda v: isinstance(v, str) and v in ACT2FN, "a name that transformers knows"),
}
GENERATION: dict[str, Rule] = {
    "max_new_tokens": optional(whole(1, 100_000)),
    "max_length": optional(whole(1, 100_000)),
    "num_beams": optional(whole(1, MAX_BEAMS)),
    "suppress_tokens": TOKENS,
    "alignment_heads": optional(list_of(list_of(whole(0, 256), 2), 10_000)),
    "language": optional(TEXT),
    "task": optional(TEXT),
    "is_multilingual": optional(BOOLEAN),
    "no_timestamps_token_id": optional(TOKEN),
    "task_to_id": optional(dict_of(TOKEN)),
    "lang_to_id": optional(dict_of(TOKEN)),
}
CTRANSLATE2 = dict.fromkeys(("suppress_ids", "suppress_ids_begin", "lang_ids"), TOKENS)
SECONDS = number(0, 3_600)
WINDOW = {"edges_s": list_of(SECONDS, 1_000), "margin_s": SECONDS}
TRAINED_ON = dict.fromkeys(("longest_s", "p95_s"), number(0, 100_000)) | {"density": number(0, 1_000)}
# Of a training with joined windows only.
TRAINED_ON_JOINED = dict.fromkeys(("non_speech", "timestamps"), SHARE)
PERCENT = number(0, 100)
TIMESTAMPS = {
    "texts": whole(1, 1_000_000),
    **dict.fromkeys(("stamped", "near_joints"), PERCENT),
    **dict.fromkeys(("cer", "most_near_joints_change", "least_cer_change"), number(-1_000_000, 1_000_000)),
}


def checked(values: Mapping[str, Any], rules: Mapping[str, Rule], where: str) -> dict[str, Any]:
    """Returns the values that have a rule. Raises ModelError for one that breaks it.

    where: what precedes a field's name in the message, such as `model.name=NAME: config.json has `.
    """
    if not isinstance(values, Mapping):
        raise ModelError(f"{where}{str(values)[:60]} in place of an object; use another model")
    found = {key: values[key] for key in rules if key in values}
    for key, value in found.items():
        if not rules[key].accepts(value):
            raise ModelError(f"{where}{key}={str(value)[:60]}; it must be {rules[key].words}")
    return found


def whisper_config(values: Mapping[str, Any], where: str) -> WhisperConfig:
    """Makes a config of the fields of Whisper. Raises ModelError for one that is out of its range."""
    config = WhisperConfig(**checked(values, CONFIG, where))
    if (size := parameters(config)) > MAX_PARAMETERS:
        raise ModelError(f"{where}sizes of {size / 1e6:.0f} M parameters, over {MAX_PARAMETERS / 1e6:.0f} M")
    if any(config.d_model % heads for heads in (config.encoder_attention_heads, config.decoder_attention_heads)):
        raise ModelError(f"{where}d_model={config.d_model}, which its attention heads do not divide")
    for key in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
        if (token := values.get(key)) is not None and token >= config.vocab_size:
            raise ModelError(f"{where}{key}={token}, but a vocabulary of {config.vocab_size}")
    return config


def generation_config(values: Mapping[str, Any], vocab_size: int, where: str) -> GenerationConfig:
    """Makes a generation config of the fields that are used. Raises ModelError for one that is out of its range."""
    found = checked(values, GENERATION, where)
    if beyond := [token for token in found.get("suppress_tokens") or () if token >= vocab_size]:
        raise ModelError(f"{where}suppress_tokens with {beyond[0]}, but a vocabulary of {vocab_size}")
    return GenerationConfig(**found)


def ctranslate2_config(values: Mapping[str, Any], vocab_size: int, where: str) -> None:
    """Raises ModelError for a config of CTranslate2 with a token beyond the vocabulary, where it would write."""
    for key, tokens in checked(values, CTRANSLATE2, where).items():
        if beyond := [token for token in tokens or () if token >= vocab_size]:
            raise ModelError(f"{where}{key} with {beyond[0]}, but a vocabulary of {vocab_size}")


def trained_on(values: Mapping[str, Any], where: str) -> dict[str, float]:
    """Returns what `Whisper.trained_on` holds. Raises ModelError if something is missing or out of its range."""
    return _complete(checked(values, TRAINED_ON | TRAINED_ON_JOINED, where), TRAINED_ON, where)


def timestamp_facts(values: Mapping[str, Any], where: str) -> dict[str, float]:
    """Returns what `Whisper.timestamps` holds. Raises ModelError if something is missing or out of its range."""
    return _complete(checked(values, TIMESTAMPS, where), TIMESTAMPS, where)


def _complete(found: dict[str, Any], needed: Mapping[str, Rule], where: str) -> dict[str, Any]:
    if missing := needed.keys() - found.keys():
        raise ModelError(f"{where}no {min(missing)}; use another model")
    return found


def languages(values: Any, where: str) -> list[str]:
    """Returns what `Whisper.languages` holds. Raises ModelError unless it is a list of different codes of Whisper's."""
    rule = list_of(
        Rule(lambda v: isinstance(v, str) and v in LANGUAGES, "a code of Whisper's languages"), len(LANGUAGES)
    )
    found = list(checked({"languages": values}, {"languages": rule}, where)["languages"])
    if len({*found}) < len(found):
        raise ModelError(f"{where}languages={str(found)[:60]}; each must be there once")
    return found


def parameters(config: WhisperConfig) -> int:
    """Returns about how many parameters a model has: its matrices, without biases and norms."""
    d = config.d_model
    encoder = config.encoder_layers * (4 * d + 2 * config.encoder_ffn_dim)
    decoder = config.decoder_layers * (8 * d + 2 * config.decoder_ffn_dim)
    embeddings = config.vocab_size + config.max_source_positions + config.max_target_positions
    return d * (encoder + decoder + embeddings + 3 * (config.num_mel_bins + d))
