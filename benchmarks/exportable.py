"""Folders of random Whispers of small widths with the real sizes of everything that an engine takes as given.

Vocabulary, special token ids, window, Mels and generation_config.json are those of base (51,865 tokens, 80 Mels) or of
large-v3 (51,866 tokens, one more language, 128 Mels). The words are those of a pretrained model's tokenizer, or
synthetic: bytes, then pairs and triples of letters and digits. Engines that carry a tokenizer of their own
(openai-whisper, mlx-whisper) give other texts for the same tokens of synthetic words, so compare their tokens.
"""

import json
import string
from itertools import islice, product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from kikitori.model.processor import END, SPECIAL_TOKENS, START, Processor, add_timestamps, make_processor
from kikitori.model.saving import save_model

NUM_WORDS, NUM_TIMESTAMPS = 50_257, 1_501
# The decoder position from which texts end: the prefix has four tokens.
LAST_POSITION = 12


class Sizes(NamedTuple):
    """What differs between large-v3 and the earlier models."""

    vocab_size: int
    num_mel_bins: int


BASE, LARGE_V3 = Sizes(51_865, 80), Sizes(51_866, 128)


def write_exportable(
    folder: Path, sizes: Sizes = LARGE_V3, layers: int = 2, seed: int = 3, words_of: Path | None = None
) -> Path:
    """Writes a model's folder, as `Whisper.save` does, and returns it. Its texts end after 9 tokens or less.

    words_of: the folder of a pretrained model, whose words are taken.
    """
    tokenizer = whisper_tokenizer(sizes, *(pretrained_words(words_of) if words_of else synthetic_words()))
    config = whisper_config(tokenizer, sizes, layers)
    model = WhisperForConditionalGeneration(config).eval()
    randomize(model, seed)
    processor = make_processor(tokenizer, config, "ja", "transcribe", "random")
    model.generation_config = generation_config(processor, layers)
    save_model(model, processor, folder)
    return folder


Words = dict[str, int]
Merges = list[tuple[str, str]]


def pretrained_words(folder: Path) -> tuple[Words, Merges]:
    """The words of a tokenizer.json, and the pairs of which they are made."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    words = {word: index for word, index in model["vocab"].items() if index < NUM_WORDS}
    return {**words, END: NUM_WORDS}, [(first, second) for first, second in pairs]


def synthetic_words() -> tuple[Words, Merges]:
    """Bytes, pairs and triples of letters and digits."""
    letters = string.ascii_letters + string.digits
    pairs = [(a, b) for a, b in product(letters, repeat=2)]
    triples = ((a + b, c) for (a, b), c in product(pairs, letters))
    alphabet = list(bytes_to_unicode().values())
    merges = [*pairs, *islice(triples, NUM_WORDS - len(alphabet) - len(pairs))]
    words = [*alphabet, *("".join(merge) for merge in merges), END]
    return {word: i for i, word in enumerate(words)}, merges


def whisper_tokenizer(sizes: Sizes, words: Words, merges: Merges) -> WhisperTokenizer:
    """A byte-level tokenizer with the ids of a stock one: 50,257 words, then the special tokens, then timestamps."""
    tokenizer = WhisperTokenizer(vocab=words, merges=merges, pad_token=END)
    special = SPECIAL_TOKENS if sizes == LARGE_V3 else [token for token in SPECIAL_TOKENS if token != "<|yue|>"]
    tokenizer.add_special_tokens({"extra_special_tokens": special})
    add_timestamps(tokenizer, len(tokenizer), NUM_TIMESTAMPS)
    assert len(tokenizer) == sizes.vocab_size
    return tokenizer


def whisper_config(tokenizer: WhisperTokenizer, sizes: Sizes, layers: int) -> WhisperConfig:
    end, start = (tokenizer.convert_tokens_to_ids(token) for token in (END, START))
    return WhisperConfig(
        vocab_size=sizes.vocab_size,
        num_mel_bins=sizes.num_mel_bins,
        d_model=64,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=start,
        begin_suppress_tokens=None,
    )


@torch.no_grad()
def randomize(model: nn.Module, seed: int) -> None:
    """Sets weights whose texts depend on the audio, with clear differences between the best two tokens.

    No text is chosen but of 64 words and of the control tokens, which generation_config.json suppresses. All biases and
    norms matter.
    """
    torch.manual_seed(seed)
    for name, weights in model.named_parameters():
        noise = torch.randn_like(weights)
        if weights.ndim == 1:
            weights.copy_(0.1 * noise + ("norm" in name and name.endswith("weight")))
        elif "embed" not in name:
            weights.copy_(3 * noise / weights[0].numel() ** 0.5)
    tokens, positions = (getattr(model.model.decoder, f"embed_{of}").weight for of in ("tokens", "positions"))
    tokens.copy_(0.02 * torch.randn_like(tokens))
    spoken = torch.arange(0, NUM_WORDS, NUM_WORDS // 64)
    tokens[spoken] = 0.4 * torch.randn_like(tokens[spoken])
    tokens[NUM_WORDS:] = 0.4 * torch.randn_like(tokens[NUM_WORDS:])
    # The encoder's are sinusoids in every Whisper; some engines compute them.
    positions.copy_(torch.randn_like(positions))
    positions[LAST_POSITION:] += 50 * tokens[NUM_WORDS]


def generation_config(processor: Processor, layers: int) -> GenerationConfig:
    ids = processor.tokenizer.get_vocab()
    end, first = ids[END], ids["<|notimestamps|>"] + 1
    tasks = {task: ids[f"<|{task}|>"] for task in ("translate", "transcribe")}
    return GenerationConfig(
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=ids[START],
        max_new_tokens=225,
        # Everything after the end token: engines that add their own rules then choose among the same tokens.
        suppress_tokens=[*range(end + 1, first + NUM_TIMESTAMPS)],
        begin_suppress_tokens=[ids["Ġ"], end],
        language=processor.language,
        task=processor.task,
        is_multilingual=True,
        return_timestamps=False,
        lang_to_id={token: ids[token] for token in SPECIAL_TOKENS[1:101] if token in ids},
        task_to_id=tasks,
        no_timestamps_token_id=first - 1,
        prev_sot_token_id=ids["<|startofprev|>"],
        max_initial_timestamp_index=50,
        alignment_heads=[[layers - 1, 0], [layers - 1, 1]],
    )
