"""Transformers: the model's own folder, in any precision."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.exports.formats import TEXT_TOKENS, Format, Read
from kikitori.runtime.files import read_json, write_json

WEIGHTS = "model.safetensors"


def write(model_folder: Path, target: Path, precision: str) -> None:
    """Writes an export."""
    shutil.copytree(model_folder, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(WEIGHTS))
    dtype = getattr(torch, precision)
    weights = {name: weight.to(dtype) for name, weight in load_file(model_folder / WEIGHTS).items()}
    save_file(weights, target / WEIGHTS, metadata={"format": "pt"})
    write_json(target / "config.json", {**read_json(target / "config.json"), "dtype": precision})


def load(target: Path, language: str, task: str) -> Read:
    """Opens an export on the CPU."""
    processor = WhisperProcessor.from_pretrained(target, local_files_only=True)
    model = WhisperForConditionalGeneration.from_pretrained(
        target, local_files_only=True, use_safetensors=True, dtype="auto"
    )
    settings = {"language": language, "task": task, "num_beams": 1, "do_sample": False, "max_new_tokens": TEXT_TOKENS}

    def read(samples: Tensor) -> str:
        found = processor(samples.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        tokens = model.generate(found.input_features.to(model.dtype), return_timestamps=False, **settings)
        return str(processor.batch_decode(tokens, skip_special_tokens=True)[0]).strip()

    return read


FORMAT = Format(
    name="transformers",
    extra=None,
    modules=("transformers",),
    precisions=("float32", "float16", "bfloat16"),
    write=write,
    load=load,
)
