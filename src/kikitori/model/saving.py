"""Writes a model's folder for every tool that reads Whisper.

transformers 5 writes fewer files than transformers 4 did. transformers 4 itself, faster-whisper, and converters such as
those of CTranslate2 and whisper.cpp read the ones that are missing, so these are written as well.
"""

from pathlib import Path

from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor, WhisperTokenizer

from kikitori.model.processor import Processor
from kikitori.runtime.files import read_json, write_json

# Entries of tokenizer_config.json that describe the tokenizer; transformers 5 adds how and from where it was loaded.
TOKENIZER_KEYS = (
    *("add_prefix_space", "backend", "bos_token", "clean_up_tokenization_spaces", "eos_token", "language"),
    *("model_max_length", "pad_token", "predict_timestamps", "processor_class", "task", "tokenizer_class", "unk_token"),
)


def save_model(model: WhisperForConditionalGeneration, processor: Processor, folder: Path) -> None:
    """Writes weights, configuration, tokenizer and feature extractor."""
    extractor = WhisperFeatureExtractor(processor.num_mel_bins, chunk_length=round(processor.window_s))
    WhisperProcessor(extractor, processor.tokenizer).save_pretrained(folder)
    extractor.save_pretrained(folder)  # preprocessor_config.json
    _save_tokenizer(processor.tokenizer, folder)
    model.save_pretrained(folder)
    # As in stock models, where max_length does not count the prefix; of max_new_tokens transformers' pipeline warns at
    # each call.
    generation = read_json(folder / "generation_config.json")
    generation["max_length"] = generation.pop("max_new_tokens")
    write_json(folder / "generation_config.json", generation)


def _save_tokenizer(tokenizer: WhisperTokenizer, folder: Path) -> None:
    """Adds the tokenizer files of transformers 4, and corrects the tokenizer_config.json of transformers 5."""
    words = tokenizer.backend_tokenizer.model
    words.save(str(folder))  # vocab.json and merges.txt
    added = tokenizer.added_tokens_decoder
    write_json(
        folder / "added_tokens.json",
        {token.content: index for index, token in added.items() if words.id_to_token(index) is None},
    )
    named = tokenizer.special_tokens_map
    special = [token.content for token in added.values() if token.special and token.content not in named.values()]
    write_json(folder / "special_tokens_map.json", {**named, "additional_special_tokens": special})
    if tokenizer.english_spelling_normalizer is not None:
        write_json(folder / "normalizer.json", tokenizer.english_spelling_normalizer)
    saved = read_json(folder / "tokenizer_config.json")
    # By this name, because transformers 4 fails on a list of extra_special_tokens. transformers 5 reads it, too.
    config = {key: saved[key] for key in TOKENIZER_KEYS if key in saved} | {"additional_special_tokens": special}
    write_json(folder / "tokenizer_config.json", config)
