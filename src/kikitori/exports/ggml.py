"""The file that whisper.cpp reads, read back by whisper.cpp itself through pywhispercpp.

The file holds, in the machine's order of bytes: a magic number, eleven sizes, the Mel filters, the words of the
tokenizer as bytes, and the weights under OpenAI's names. whisper.cpp derives the ids of special tokens from the size of
the vocabulary. It stops the process on weights of float32, so that is no choice here. int8 is its format q8_0.
"""

import shutil
import struct
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.exports.formats import TEXT_TOKENS, Format, Read
from kikitori.exports.openai import GENERATION, openai_weights, suppresses_blank
from kikitori.model.features import mel_filters
from kikitori.model.processor import BYTE_OF, END
from kikitori.runtime.files import create, read_json

FILE = "ggml-model.bin"
MAGIC = 0x67676D6C
# ggml's numbers for the weights of a whole file (2 is the version of its quantised formats), and of one tensor.
FILE_TYPES = {"float16": 1, "int8": 2_007}
FLOAT32, FLOAT16, Q8_0 = 0, 1, 8
# Values of a row that share a scale in Q8_0.
BLOCK = 32
# It reads what follows a window in another one.
WINDOW_SAMPLES = 30 * SAMPLE_RATE
# The tokens of a text, at most: whisper.cpp drops the whole text where it gets to 220.
MAX_TOKENS = min(TEXT_TOKENS, 219)


def write(model_folder: Path, target: Path, precision: str) -> None:
    """Writes the file of a model's folder."""
    config = read_json(model_folder / "config.json")
    with create(target / FILE) as file:
        file.write(struct.pack("=12i", MAGIC, *_sizes(config), FILE_TYPES[precision]))
        filters = mel_filters(config["num_mel_bins"])
        file.write(struct.pack("=2i", *filters.shape) + filters.contiguous().numpy().tobytes())
        words = _words(model_folder)
        file.write(struct.pack("=i", len(words)))
        for word in words:
            file.write(struct.pack("=i", len(word)) + word)
        for name, weights in openai_weights(model_folder).items():
            _write_tensor(file, name, weights, precision)
    shutil.copyfile(model_folder / GENERATION, target / GENERATION)


def _sizes(config: dict[str, int]) -> list[int]:
    """The sizes of a model in the order of the file."""
    encoder = ("max_source_positions", "d_model", "encoder_attention_heads", "encoder_layers")
    decoder = ("max_target_positions", "d_model", "decoder_attention_heads", "decoder_layers")
    return [config[key] for key in ("vocab_size", *encoder, *decoder, "num_mel_bins")]


def _words(model_folder: Path) -> list[bytes]:
    """The tokenizer's words before the end token, in the order of their ids."""
    vocabulary = read_json(model_folder / "tokenizer.json")["model"]["vocab"]
    words = sorted((number, word) for word, number in vocabulary.items() if word != END)
    return [bytes(BYTE_OF[symbol] for symbol in word) for _, word in words]


def _write_tensor(file: BinaryIO, name: str, weights: Tensor, precision: str) -> None:
    """Writes one tensor: counts of dimensions and of the name's bytes, type, dimensions from the last, name, data."""
    if name in ("encoder.conv1.bias", "encoder.conv2.bias"):
        weights = weights[:, None]
    if weights.ndim == 1 or name.endswith((".bias", "positional_embedding")):
        kind, data = FLOAT32, weights.float().contiguous().numpy().tobytes()
    elif precision == "int8" and weights.ndim == 2:
        kind, data = Q8_0, q8_0(weights)
    else:
        kind, data = FLOAT16, weights.half().contiguous().numpy().tobytes()
    encoded = name.encode()
    file.write(struct.pack("=3i", weights.ndim, len(encoded), kind))
    file.write(struct.pack(f"={weights.ndim}i", *reversed(weights.shape)) + encoded + data)


def q8_0(weights: Tensor) -> bytes:
    """Quantises (rows, columns), columns a multiple of 32: 32 values of a row become a float16 scale and 32 int8."""
    blocks = weights.float().reshape(-1, BLOCK)
    scales = blocks.abs().amax(1, keepdim=True) / 127
    values = (blocks / scales.clamp(min=torch.finfo().tiny)).round().to(torch.int8)
    return torch.cat([scales.half().view(torch.int8), values], 1).numpy().tobytes()


def load(target: Path, language: str, task: str) -> Read:
    """Opens the file with whisper.cpp, which a damaged one makes end the process. It writes nothing to the terminal."""
    from pywhispercpp.model import Model

    generation = read_json(target / GENERATION)
    model = Model(
        str(target / FILE),
        redirect_whispercpp_logs_to=None,
        # With its flash attention it reads other texts, beyond ties.
        context_params={"use_gpu": False, "flash_attn": False},
        language=language,
        translate=task == "translate",
        no_timestamps=True,
        single_segment=True,
        print_progress=False,
        # Greedily, and once: no other temperature, and no text is dropped.
        greedy={"best_of": 1},
        temperature_inc=0.0,
        no_speech_thold=1.0,
        max_tokens=MAX_TOKENS - 1,  # it adds one more
        suppress_blank=suppresses_blank(generation),
        # Its own list, OpenAI's, which is the only one that stock models have.
        suppress_nst=bool(generation.get("suppress_tokens")),
    )

    def read(samples: Tensor) -> str:
        segments = model.transcribe(samples[:WINDOW_SAMPLES].numpy())
        return "".join(segment.text for segment in segments).strip()

    return read


FORMAT = Format(
    name="ggml",
    extra="ggml",
    modules=("pywhispercpp",),
    precisions=("float16", "int8"),
    write=write,
    load=load,
)
