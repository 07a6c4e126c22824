"""Turns audio and text into model inputs, and token ids back into text, like transformers' `WhisperProcessor`.

It needs no weights, so that a corpus can be checked before a model is loaded. A control token is one such as
`<|endoftext|>`: text never contains one, whatever it looks like.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import WhisperConfig, WhisperTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from kikitori.metrics.languages import closest, language_code
from kikitori.metrics.normalizer import word_separator
from kikitori.metrics.speech_rate import BYTE_S
from kikitori.model import features
from kikitori.model.window import FULL, Window, window_from_plain
from kikitori.runtime.errors import ModelError

END = "<|endoftext|>"
START = "<|startoftranscript|>"
PREVIOUS = "<|startofprev|>"
TASKS = ("translate", "transcribe")
# The order matters: Whisper's tokenizer finds a language's id by its position after the start token.
SPECIAL_TOKENS = [START, *(f"<|{code}|>" for code in LANGUAGES), "<|translate|>", "<|transcribe|>"]
SPECIAL_TOKENS += ["<|startoflm|>", PREVIOUS, "<|nospeech|>", "<|notimestamps|>"]
# What a control token looks like, timestamps (<|0.00|>) included; those of a tokenizer may look otherwise, too.
CONTROL_TOKEN = re.compile(r"<\|[^\s|<>]+\|>")
# The byte that each symbol of a token stands for.
BYTE_OF = {symbol: byte for byte, symbol in bytes_to_unicode().items()}
# Log-Mel frames per encoder position: the encoder's second convolution has a stride of 2.
FRAMES_PER_POSITION = 2
# Samples between two timestamps, which are multiples of 0.02 s: one position of the encoder.
SAMPLES_PER_STAMP = FRAMES_PER_POSITION * features.HOP_LENGTH
# The key of a model's config.json that holds the window it was trained with.
WINDOW_KEY = "kikitori_window"


@dataclass(frozen=True)
class Processor:
    """The tokenizer, features and padding of one model, for one language (Whisper's code) and task.

    frames: the encoder's full window in log-Mel frames of 10 ms (3000 for a stock Whisper).
    max_label_tokens: the maximum length of a transcript in tokens, special ones included.
    window: how far clips are padded.
    """

    tokenizer: WhisperTokenizer
    language: str
    task: str
    num_mel_bins: int
    frames: int
    max_label_tokens: int
    window: Window = FULL

    @property
    def window_s(self) -> float:
        """The encoder's full window in seconds."""
        return self.frames / features.FRAMES_PER_SECOND

    def of(self, language: str | None) -> "Processor":
        """The processor of clips of another language, by Whisper's code; None for its own."""
        if language is None or language == self.language:
            return self
        return self._others.setdefault(language, replace(self, language=language))

    @cached_property
    def _others(self) -> dict[str, "Processor"]:
        """The processors of other languages, kept with what they computed of the vocabulary, which takes 60 ms."""
        return {}

    def check_languages(self, languages: Sequence[str]) -> None:
        """Raises ModelError for a language that the model does not have. languages: Whisper's codes."""
        vocabulary = self.tokenizer.get_vocab()
        if missing := [code for code in languages if f"<|{code}|>" not in vocabulary]:
            raise ModelError(
                f"the clips are of {', '.join(languages)}, and the model does not have {', '.join(missing)}; leave "
                "these clips out, or state a related language for them that it has"
            )

    @cached_property
    def prefix(self) -> list[int]:
        """The ids of start, language, task and no-timestamps: the beginning of every transcript, also in generation."""
        names = [START, f"<|{self.language}|>", f"<|{self.task}|>", "<|notimestamps|>"]
        return self.tokenizer.convert_tokens_to_ids(names)

    @cached_property
    def timestamp_begin(self) -> int | None:
        """The id of the timestamp <|0.00|>; None for a tokenizer without the timestamps of the model's window."""
        ids = self.tokenizer.get_vocab()
        first, last = ids.get(timestamp(0)), ids.get(timestamp(self.num_timestamps - 1))
        return first if first is not None and last == first + self.num_timestamps - 1 else None

    @property
    def num_timestamps(self) -> int:
        """The timestamps of the model's window, from 0.00 to its end: 1501 of 30 s."""
        return self.frames // FRAMES_PER_POSITION + 1

    @cached_property
    def previous_id(self) -> int:
        """The id of the token before the text that precedes a window, its prompt."""
        found: int = self.tokenizer.convert_tokens_to_ids(PREVIOUS)
        return found

    @property
    def max_prompt_tokens(self) -> int:
        """The most tokens of the text before a window: half of the decoder's context, without its own token."""
        return self.max_label_tokens // 2 - 1

    @cached_property
    def separator(self) -> str:
        """The text between two sentences: a space, or nothing in languages without spaces."""
        return word_separator(self.text_language)

    @cached_property
    def token_s(self) -> dict[int, float]:
        """The seconds of speech that each token takes at least; special tokens are not listed, they take none."""
        words = self.tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
        return {i: sum(BYTE_S[BYTE_OF.get(symbol, 0)] for symbol in word) for word, i in words.items() if word != END}

    @property
    def text_language(self) -> str:
        """The code of the language of the text, by whose rules it is scored: a translation is English."""
        return "en" if self.task == "translate" else self.language

    @property
    def control_ids(self) -> frozenset[int]:
        """The ids of all control tokens."""
        return control_tokens(self.tokenizer, len(self.tokenizer)).ids

    def encode(self, text: str) -> list[int]:
        """Returns all token ids of one transcript: prefix, text, end token."""
        return [*self.prefix, *self.encode_texts([text])[0], self.tokenizer.eos_token_id]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Returns the length of `encode` of each text, in a fifth of the time."""
        return [len(self.prefix) + len(ids) + 1 for ids in self.encode_texts(texts)]

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text alone; control tokens in it are text, too."""
        if not texts:
            return []
        # The tokenizer then leaves special tokens alone. Timestamps are control tokens that it does not call special.
        as_text = {"add_special_tokens": False, "split_special_tokens": True}
        encoded, control = self.tokenizer(list(texts), **as_text)["input_ids"], self.control_ids
        for index, ids in enumerate(encoded):
            if not control.isdisjoint(ids):
                encoded[index] = [i for one in self.tokenizer(list(texts[index]), **as_text)["input_ids"] for i in one]
        return list(encoded)

    def decode(self, sequences: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """Returns the text of each row of token ids, without control tokens and surrounding white space.

        The tokenizer's own `decode` would also remove text that looks like a timestamp.
        """
        rows = sequences.tolist() if isinstance(sequences, Tensor) else sequences
        control = self.control_ids
        kept = [[token for token in row if token not in control] for row in rows]
        texts = self.tokenizer.backend_tokenizer.decode_batch(kept, skip_special_tokens=False)
        return [text.strip() for text in texts]

    def label_fault(self, tokens: Sequence[int]) -> str | None:
        """Returns what is wrong with the token ids of a transcript, as `encode` returns them; None for correct ones."""
        prefix, end = self.prefix, self.tokenizer.eos_token_id
        text = tokens[len(prefix) : -1]
        if list(tokens[: len(prefix)]) != prefix:
            return f"the labels begin with {list(tokens[: len(prefix)])}, must be {prefix}"
        if tokens[-1] != end or len(tokens) <= len(prefix):
            return f"the labels end with {tokens[-1]}, must be the end token, {end}"
        if not self.control_ids.isdisjoint(text):
            found = next(token for token in text if token in self.control_ids)
            return f"the labels hold the control token {self.tokenizer.convert_ids_to_tokens(found)} in the text"
        if len(tokens) > self.max_label_tokens:
            return f"{len(tokens)} labels, over {self.max_label_tokens}"
        return None

    def window_frames(self, samples: int) -> int:
        """Returns the log-Mel frames that a clip of `samples` at 16 kHz is padded to."""
        return self.window.frames(samples, self.frames)

    def log_mel(self, waveform: Tensor, full_window: bool = False) -> Tensor:
        """Computes the features of a clip: (samples,) float32 at 16 kHz to (mels, frames).

        full_window: whether to pad to the encoder's full window instead of the clip's own.
        """
        frames = self.frames if full_window else self.window_frames(len(waveform))
        return features.log_mel(waveform, self.num_mel_bins, frames)


def whisper_code(language: str) -> str:
    """Returns the code of a configured language. Raises ModelError for a text that is neither a code nor a name."""
    try:
        return language_code(language)
    except ValueError as error:
        raise ModelError(f"model.language: {error}") from error


def make_processor(
    tokenizer: WhisperTokenizer, config: WhisperConfig, language: str, task: str, name: str
) -> Processor:
    """Makes the processor of the model called `name`. Raises ModelError for a language or task it does not support.

    language: a code or name, see `kikitori.metrics.languages`.
    """
    vocabulary, code = tokenizer.get_vocab(), whisper_code(language)
    supported = [code for code in LANGUAGES if f"<|{code}|>" in vocabulary]
    if code not in supported:
        raise ModelError(
            f"model.language={language}: {name} does not have this language{closest(language, supported) or '.'} To "
            "fine-tune it for a language that it does not have, set model.language to a related one that it has"
        )
    if task not in TASKS:
        raise ModelError(f"model.task={task}: must be one of {', '.join(TASKS)}")
    tokenizer.set_prefix_tokens(language=code, task=task, predict_timestamps=False)
    return Processor(
        tokenizer=tokenizer,
        language=code,
        task=task,
        num_mel_bins=config.num_mel_bins,
        frames=config.max_source_positions * FRAMES_PER_POSITION,
        max_label_tokens=config.max_target_positions,
        window=window_from_plain(getattr(config, WINDOW_KEY, None)),
    )


def timestamp(number: int) -> str:
    """The text of a timestamp token, by its number: <|0.02|> is number 1."""
    return f"<|{number / 50:.2f}|>"


def byte_tokenizer(timestamps_s: int = 0) -> WhisperTokenizer:
    """Makes a Whisper tokenizer whose only tokens are the 256 bytes and the special tokens, without loading a file.

    timestamps_s: the seconds of a window whose timestamps it has as well, as last tokens like in a stock tokenizer.
    """
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = WhisperTokenizer(vocab={**vocabulary, END: len(vocabulary)}, merges=[], pad_token=END)
    tokenizer.add_special_tokens({"extra_special_tokens": SPECIAL_TOKENS})
    if timestamps_s:
        add_timestamps(tokenizer, len(tokenizer), timestamps_s * features.FRAMES_PER_SECOND // FRAMES_PER_POSITION + 1)
    return tokenizer


def add_timestamps(tokenizer: WhisperTokenizer, first: int, count: int) -> None:
    """Adds `count` timestamps to a tokenizer, if `first` is the id that its next token gets.

    The tokenizers of some stock models lack them, although their vocabularies have a place for each.
    """
    if len(tokenizer) == first and timestamp(0) not in tokenizer.get_vocab():
        # No special tokens, as in stock tokenizers: a stock tokenizer removes special ones from what it decodes.
        tokenizer.add_tokens([AddedToken(timestamp(i), normalized=False, special=False) for i in range(count)])


def control_token_in(text: str, processor: Processor | None = None) -> str | None:
    """Returns the first part of a text that is written like a control token, or None.

    processor: of the model, whose tokenizer may have control tokens of another form.
    """
    if found := CONTROL_TOKEN.search(text):
        return found[0]
    tokenizer = processor.tokenizer if processor else None
    others = control_tokens(tokenizer, len(tokenizer)).other_texts if tokenizer else []
    return next((token for token in others if token in text), None)


class ControlTokens(NamedTuple):
    """The control tokens of a tokenizer: their ids, and the texts of those that do not look like `CONTROL_TOKEN`."""

    ids: frozenset[int]
    other_texts: list[str]


@lru_cache(maxsize=4)
def control_tokens(tokenizer: WhisperTokenizer, size: int) -> ControlTokens:
    """Returns the control tokens of a tokenizer: special ones, and those that look like one, such as timestamps.

    size: of its vocabulary, len(tokenizer), because tokens may be added to it.
    """
    ids = tokenizer.get_vocab()
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    control = special | {token for token in ids if CONTROL_TOKEN.fullmatch(token)}
    others = sorted(token for token in special if token.strip() and not CONTROL_TOKEN.fullmatch(token))
    return ControlTokens(frozenset(ids[token] for token in control if token in ids), others)
