"""Turns audio and text into model inputs, and token ids back into text, like transformers' `WhisperProcessor`.

It needs no weights, so that a corpus can be checked before a model is loaded. A control token is one such as
`<|endoftext|>`: text never contains one, whatever it looks like.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import WhisperConfig, WhisperTokenizer
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from kikitori.metrics.languages import closest, language_code
from kikitori.model import features
from kikitori.model.window import FULL, Window, window_from_plain
from kikitori.runtime.errors import ModelError

END = "<|endoftext|>"
START = "<|startoftranscript|>"
TASKS = ("translate", "transcribe")
# The order matters: Whisper's tokenizer finds a language's id by its position after the start token.
SPECIAL_TOKENS = [START, *(f"<|{code}|>" for code in LANGUAGES), "<|translate|>", "<|transcribe|>"]
SPECIAL_TOKENS += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
# What a control token looks like, timestamps (<|0.00|>) included; those of a tokenizer may look otherwise, too.
CONTROL_TOKEN = re.compile(r"<\|[^\s|<>]+\|>")
# Log-Mel frames per encoder position: the encoder's second convolution has a stride of 2.
FRAMES_PER_POSITION = 2
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

    @cached_property
    def prefix(self) -> list[int]:
        """The ids of start, language, task and no-timestamps: the beginning of every transcript, also in generation."""
        names = [START, f"<|{self.language}|>", f"<|{self.task}|>", "<|notimestamps|>"]
        return self.tokenizer.convert_tokens_to_ids(names)

    @property
    def text_language(self) -> str:
        """The code of the language of the text, by whose rules it is scored: a translation is English."""
        return "en" if self.task == "translate" else self.language

    @property
    def control_ids(self) -> frozenset[int]:
        """The ids of all control tokens."""
        return text_tokenizer(self.tokenizer).control_ids

    def encode(self, text: str) -> list[int]:
        """Returns all token ids of one transcript: prefix, text, end token. No control token is found in the text."""
        return [*self.prefix, *text_tokenizer(self.tokenizer).encode([text])[0], self.tokenizer.eos_token_id]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Returns the length of `encode` of each text, in a fifth of the time."""
        return [len(self.prefix) + len(ids) + 1 for ids in text_tokenizer(self.tokenizer).encode(texts)]

    def decode(self, sequences: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """Returns the text of each row of token ids, without control tokens and surrounding white space."""
        rows = sequences.tolist() if isinstance(sequences, Tensor) else sequences
        return [text.strip() for text in text_tokenizer(self.tokenizer).decode(rows)]

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


def byte_tokenizer() -> WhisperTokenizer:
    """Makes a Whisper tokenizer whose only tokens are the 256 bytes and the special tokens, without loading a file."""
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = WhisperTokenizer(vocab={**vocabulary, END: len(vocabulary)}, merges=[], pad_token=END)
    tokenizer.add_special_tokens({"extra_special_tokens": SPECIAL_TOKENS})
    return tokenizer


def control_token_in(text: str, processor: Processor | None = None) -> str | None:
    """Returns the first part of a text that is written like a control token, or None.

    processor: of the model, whose tokenizer may have control tokens of another form.
    """
    if found := CONTROL_TOKEN.search(text):
        return found[0]
    others = text_tokenizer(processor.tokenizer).control_texts if processor else []
    return next((token for token in others if token in text), None)


@dataclass(frozen=True, eq=False)
class TextTokenizer:
    """Encodes and decodes text alone.

    backend: the tokenizer of the `tokenizers` library. control_ids: ids of the control tokens. control_texts: those
    that do not look like `CONTROL_TOKEN`.
    """

    backend: Tokenizer
    control_ids: frozenset[int]
    control_texts: list[str]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of each text."""
        return [encoding.ids for encoding in self.backend.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Returns the text of each row of token ids; control tokens are left out."""
        kept = [[token for token in row if token not in self.control_ids] for row in rows]
        return list(self.backend.decode_batch(kept, skip_special_tokens=False))


def text_tokenizer(tokenizer: WhisperTokenizer) -> TextTokenizer:
    """Returns the tokenizer of text that belongs to a Whisper tokenizer; words that were added to it are text."""
    return _text_tokenizer(tokenizer, len(tokenizer))


@lru_cache(maxsize=4)
def _text_tokenizer(tokenizer: WhisperTokenizer, size: int) -> TextTokenizer:
    """size: of the vocabulary, so that a tokenizer to which tokens were added gets a new one."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    control = {token["content"] for token in state["added_tokens"] if token["special"]}
    control |= {token for token in tokenizer.get_vocab() if CONTROL_TOKEN.fullmatch(token)}
    for token in state["added_tokens"]:
        # Whisper's timestamps are added tokens that are not special.
        token["special"] = token["content"] in control
    backend = Tokenizer.from_str(json.dumps(state | {"truncation": None, "padding": None}))
    # Special tokens are not searched for in a text.
    backend.encode_special_tokens = True
    ids = tokenizer.get_vocab()
    return TextTokenizer(
        backend,
        frozenset(ids[token] for token in control if token in ids),
        sorted(token for token in control if token.strip() and not CONTROL_TOKEN.fullmatch(token)),
    )
