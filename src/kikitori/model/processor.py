"""Turns audio and text into model inputs, and token ids back into text, like transformers' `WhisperProcessor`.

It needs no weights, so that a corpus can be checked before a model is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import WhisperConfig, WhisperTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from kikitori.metrics.speech_rate import BYTE_S
from kikitori.model import features
from kikitori.model.window import FULL, Window, window_from_plain
from kikitori.runtime.errors import ModelError

END = "<|endoftext|>"
START = "<|startoftranscript|>"
TASKS = ("translate", "transcribe")
# The order matters: Whisper's tokenizer finds a language's id by its position after the start token.
SPECIAL_TOKENS = [START, *(f"<|{code}|>" for code in LANGUAGES), "<|translate|>", "<|transcribe|>"]
SPECIAL_TOKENS += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
# Log-Mel frames per encoder position: the encoder's second convolution has a stride of 2.
FRAMES_PER_POSITION = 2
# The key of a model's config.json that holds the window it was trained with.
WINDOW_KEY = "kikitori_window"


@dataclass(frozen=True)
class Processor:
    """The tokenizer, features and padding of one model, for one language and task.

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

    @cached_property
    def token_s(self) -> dict[int, float]:
        """The seconds of speech that each token takes at least; special tokens are not listed, they take none."""
        byte_of = {symbol: byte for byte, symbol in bytes_to_unicode().items()}
        words = self.tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
        return {i: sum(BYTE_S[byte_of.get(symbol, 0)] for symbol in word) for word, i in words.items() if word != END}

    def encode(self, text: str) -> list[int]:
        """Returns all token ids of one transcript: prefix, text, end token."""
        tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*self.prefix, *tokens, self.tokenizer.eos_token_id]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Returns the length of `encode` of each text, in a fifth of the time."""
        ids = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        return [len(self.prefix) + len(tokens) + 1 for tokens in ids]

    def decode(self, sequences: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """Returns the text of each row of token ids, without special tokens and surrounding white space."""
        return [t.strip() for t in self.tokenizer.batch_decode(sequences, skip_special_tokens=True)]

    def window_frames(self, samples: int) -> int:
        """Returns the log-Mel frames that a clip of `samples` at 16 kHz is padded to."""
        return self.window.frames(samples, self.frames)

    def log_mel(self, waveform: Tensor, full_window: bool = False) -> Tensor:
        """Computes the features of a clip: (samples,) float32 at 16 kHz to (mels, frames).

        full_window: whether to pad to the encoder's full window instead of the clip's own.
        """
        frames = self.frames if full_window else self.window_frames(len(waveform))
        return features.log_mel(waveform, self.num_mel_bins, frames)


def make_processor(
    tokenizer: WhisperTokenizer, config: WhisperConfig, language: str, task: str, name: str
) -> Processor:
    """Makes the processor of the model called `name`. Raises ModelError for a language or task it does not support."""
    vocabulary = tokenizer.get_vocab()
    if f"<|{language}|>" not in vocabulary or "<|notimestamps|>" not in vocabulary:
        raise ModelError(
            f"model {name} does not support the language {language!r}; set model.language (in kikitori transcribe: "
            "--language) to one of its own, such as ja or en"
        )
    if task not in TASKS:
        raise ModelError(f"model.task={task}: must be one of {', '.join(TASKS)}")
    tokenizer.set_prefix_tokens(language=language, task=task, predict_timestamps=False)
    return Processor(
        tokenizer=tokenizer,
        language=language,
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
