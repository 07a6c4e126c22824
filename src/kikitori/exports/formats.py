"""What every format of an exported model has in common, and where each is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor
from transformers import WhisperConfig, WhisperTokenizer

from kikitori.config.names import did_you_mean
from kikitori.model.processor import Processor, make_processor
from kikitori.runtime.errors import ConfigError
from kikitori.runtime.files import read_json

# The module of each format, imported where it is used.
FORMATS = {
    name: f"kikitori.exports.{name}" for name in ("ctranslate2", "ggml", "onnx", "openai", "mlx", "transformers")
}
# Programs after which people name the format that they read.
PROGRAMS = {
    **dict.fromkeys(("faster-whisper", "faster_whisper", "whisperx", "ct2"), "ctranslate2"),
    **dict.fromkeys(("whisper.cpp", "whisper-cpp", "whispercpp", "gguf"), "ggml"),
    **dict.fromkeys(("whisper", "openai-whisper"), "openai"),
    "onnxruntime": "onnx",
    "optimum": "onnx",
    "mlx-whisper": "mlx",
    "huggingface": "transformers",
}
# Tokens of a text, at most, in every reading: openai-whisper has no other limit.
TEXT_TOKENS = 224
# Turns the first 30 s of (samples,) float32 at 16 kHz into text.
Read = Callable[[Tensor], str]


@dataclass(frozen=True)
class Format:
    """A format that other programs read, and the engine that reads it back.

    extra: of pyproject.toml, None if nothing is needed. modules: what must be installed, by the names that are
    imported. precisions: the first is the default; those that the engine supports, by its own names.
    write: writes the export of a model's folder, as `kikitori.model.saving` writes it, into an empty folder, in one of
    the precisions.
    load: opens such a folder and returns what reads clips, for Whisper's code of a language and a task: greedily,
    without timestamps, with the prefix start, language, task and no-timestamps, TEXT_TOKENS at most, and no spaces
    around the text. Features are the engine's own, where it has some.
    disk: bytes on the disk for each weight while an export is written, by precision, where weights are written several
    times.
    """

    name: str
    extra: str | None
    modules: tuple[str, ...]
    precisions: tuple[str, ...]
    write: Callable[[Path, Path, str], None]
    load: Callable[[Path, str, str], Read]
    disk: Mapping[str, float] = field(default_factory=dict, hash=False)

    def missing(self) -> str:
        """What is not installed of the engine, with its extra; empty if it is."""
        if names := [name for name in self.modules if find_spec(name) is None]:
            return f"to={self.name}: needs {', '.join(names)}: pip install 'kikitori[{self.extra}]'"
        return ""


def find_format(name: str) -> Format:
    """The format of this name. Raises ConfigError if there is none."""
    if name not in FORMATS:
        meant = f"; did you mean {PROGRAMS[name]}?" if name in PROGRAMS else did_you_mean(name, FORMATS)
        raise ConfigError(f"to={name}: must be one of {', '.join(FORMATS)}{meant}")
    found: Format = import_module(FORMATS[name]).FORMAT
    return found


def processor_in(folder: Path, language: str, task: str) -> Processor:
    """The tokenizer and the features, in the full window, of an export that holds tokenizer.json and
    preprocessor_config.json: for engines that have none.
    """
    mels = read_json(folder / "preprocessor_config.json")["feature_size"]
    tokenizer = WhisperTokenizer.from_pretrained(folder, local_files_only=True)
    return make_processor(tokenizer, WhisperConfig(num_mel_bins=mels), language, task, folder.name)
