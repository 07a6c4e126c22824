"""The folder that mlx-whisper reads: Apple's framework, which runs on CPUs elsewhere.

Its weights have OpenAI's names, except in the feed-forward layers, and the kernels of convolutions before the channels.
It computes the encoder's positions, and has the tokenizer of stock models inside.
"""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from kikitori.exports.formats import Format, Read
from kikitori.exports.openai import GENERATION, decoding_options, dimensions, openai_weights
from kikitori.runtime.files import write_json

DTYPES = {"float32": torch.float32, "float16": torch.float16}
WEIGHTS = "weights.safetensors"


def write(model_folder: Path, target: Path, precision: str) -> None:
    """Writes config.json and weights.safetensors."""
    weights = {
        _name(name): (tensor.mT if ".conv" in name and tensor.ndim == 3 else tensor).to(DTYPES[precision]).contiguous()
        for name, tensor in openai_weights(model_folder).items()
        if name != "encoder.positional_embedding"
    }
    save_file(weights, target / WEIGHTS)
    write_json(target / "config.json", {"model_type": "whisper", **dimensions(model_folder)})
    shutil.copyfile(model_folder / GENERATION, target / GENERATION)


def _name(name: str) -> str:
    return name.replace(".mlp.0.", ".mlp1.").replace(".mlp.2.", ".mlp2.")


def load(target: Path, language: str, task: str) -> Read:
    """Opens the folder with mlx-whisper, in the precision of its weights, on the CPU."""
    import mlx.core as mx
    from mlx_whisper.audio import N_SAMPLES, log_mel_spectrogram, pad_or_trim
    from mlx_whisper.decoding import DecodingOptions
    from mlx_whisper.load_models import load_model

    mx.set_default_device(mx.cpu)
    is_half = mx.load(str(target / WEIGHTS))["decoder.ln.bias"].dtype == mx.float16
    model = load_model(str(target), mx.float16 if is_half else mx.float32)
    options = DecodingOptions(**decoding_options(target, language, task), fp16=is_half)

    def read(samples: Tensor) -> str:
        mel = log_mel_spectrogram(pad_or_trim(mx.array(samples.numpy()), N_SAMPLES), model.dims.n_mels)
        text: str = model.decode(mel, options).text
        return text

    return read


FORMAT = Format(
    name="mlx",
    extra="mlx",
    modules=("mlx", "mlx_whisper"),
    precisions=("float16", "float32"),
    write=write,
    load=load,
)
