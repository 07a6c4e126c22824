"""Whisper's front end: everything that turns a clip and its transcript into tensors and back.

It needs no weights, so that a corpus can be checked before a model is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import WhisperConfig, WhisperTokenizer
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from kikitori.model import features
from kikitori.model import window as windows
from kikitori.model.window import Window
from kikitori.runtime.errors import ModelError

END = "<|endoftext|>"
START = "<|startoftranscript|>"
TASKS = ("translate", "transcribe")
# In this order: Whisper's tokenizer finds a language's id by its place after the start token.
SPECIAL_TOKENS = [START, *(f"<|{code}|>" for code in LANGUAGES), "<|translate|>", "<|transcribe|>"]
SPECIAL_TOKENS += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
# The encoder's second convolution halves the frame rate.
FRAMES_PER_POSITION = 2
# What a model's config.json calls the windows that it was trained with.
WINDOW = "kikitori_window"


@dataclass(frozen=True)
class Processor:
    """What stands between speech, text and the model's tensors.

    frames: the encoder's whole window in log-Mel frames of 10 ms (3000 for a stock Whisper).
    window: how much of it a clip is heard in.
    max_label_tokens: the longest token sequence of one transcript, special tokens included.
    """

    tokenizer: WhisperTokenizer
    language: str
    task: str
    num_mel_bins: int
    frames: int
    max_label_tokens: int
    window: Window = windows.FULL

    @property
    def window_s(self) -> float:
        """The encoder's whole window in seconds."""
        return self.frames / features.FRAMES_PER_SECOND

    @cached_property
    def prefix(self) -> list[int]:
        """Start, language, task and no-timestamps: what every transcript begins with, and generation is given."""
        names = [START, f"<|{self.language}|>", f"<|{self.task}|>", "<|notimestamps|>"]
        return self.tokenizer.convert_tokens_to_ids(names)

    def encode(self, text: str) -> list[int]:
        """Prefix, text, end: the whole token sequence of one transcript."""
        tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*self.prefix, *tokens, self.tokenizer.eos_token_id]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The lengths of `encode` of many texts, in a fifth of the time."""
        ids = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        return [len(self.prefix) + len(tokens) + 1 for tokens in ids]

    def decode(self, sequences: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """Text of each row of tokens, special ones and outer white space left out."""
        return [t.strip() for t in self.tokenizer.batch_decode(sequences, skip_special_tokens=True)]

    def window_frames(self, samples: int) -> int:
        """The log-Mel frames in which a clip of so many samples is heard."""
        return self.window.frames(samples, self.frames)

    def log_mel(self, waveform: Tensor, whole: bool = False) -> Tensor:
        """(samples,) float32 at 16 kHz to (mels, frames): the clip's own window, or the whole one."""
        return features.log_mel(
            waveform, self.num_mel_bins, self.frames if whole else self.window_frames(len(waveform))
        )


def byte_tokenizer() -> WhisperTokenizer:
    """A Whisper tokenizer whose only tokens are the 256 bytes and the special ones: nothing learnt, nothing loaded."""
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = WhisperTokenizer(vocab={**vocabulary, END: len(vocabulary)}, merges=[], pad_token=END)
    tokenizer.add_special_tokens({"extra_special_tokens": SPECIAL_TOKENS})
    return tokenizer


def make_processor(
    tokenizer: WhisperTokenizer, config: WhisperConfig, language: str, task: str, name: str
) -> Processor:
    """The front end of a model called `name`. Raises ModelError for a language or task that it does not know."""
    vocabulary = tokenizer.get_vocab()
    if f"<|{language}|>" not in vocabulary or "<|notimestamps|>" not in vocabulary:
        raise ModelError(f"model {name} does not know the language {language!r}; set model.language to one it knows")
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
        window=windows.window_from_plain(getattr(config, WINDOW, None)),
    )
