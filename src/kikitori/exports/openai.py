"""OpenAI's own whisper: one file that `whisper.load_model` reads."""

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from kikitori.exports.formats import TEXT_TOKENS, Format, Read
from kikitori.runtime.files import read_json, write_text

FILE, GENERATION = "model.pt", "generation_config.json"
# What differs between the names of weights in transformers and in openai-whisper, in this order.
NAMES = (
    (r"^model\.", ""),
    (r"embed_positions\.weight", "positional_embedding"),
    (r"embed_tokens", "token_embedding"),
    (r"\.layers\.", ".blocks."),
    (r"encoder_attn_layer_norm", "cross_attn_ln"),
    (r"self_attn_layer_norm", "attn_ln"),
    (r"final_layer_norm", "mlp_ln"),
    (r"encoder_attn", "cross_attn"),
    (r"self_attn", "attn"),
    (r"q_proj", "query"),
    (r"k_proj", "key"),
    (r"v_proj", "value"),
    (r"out_proj", "out"),
    (r"fc1", "mlp.0"),
    (r"fc2", "mlp.2"),
    (r"^encoder\.layer_norm", "encoder.ln_post"),
    (r"^decoder\.layer_norm", "decoder.ln"),
)
DIMENSIONS = {
    "n_mels": "num_mel_bins",
    "n_audio_ctx": "max_source_positions",
    "n_audio_state": "d_model",
    "n_audio_head": "encoder_attention_heads",
    "n_audio_layer": "encoder_layers",
    "n_vocab": "vocab_size",
    "n_text_ctx": "max_target_positions",
    "n_text_state": "d_model",
    "n_text_head": "decoder_attention_heads",
    "n_text_layer": "decoder_layers",
}
README = """\
# A Whisper for openai-whisper

```python
import torch
import whisper

model = whisper.load_model("model.pt")
print(whisper.transcribe(model, "talk.mp3", language="{language}")["text"])
```
"""
# The file has no place for these, and without them whisper aligns words by heads of which most do something else.
ALIGNMENT = """
Word timestamps are better with the model's alignment heads, which `load_model` does not know:

```python
heads = torch.zeros(model.dims.n_text_layer, model.dims.n_text_head, dtype=torch.bool)
for layer, head in {heads}:
    heads[layer, head] = True
model.register_buffer("alignment_heads", heads.to_sparse(), persistent=False)
```
"""


def openai_name(name: str) -> str:
    """The name of a weight of transformers' Whisper in openai-whisper: encoder.blocks.0.attn.query.weight."""
    for ours, theirs in NAMES:
        name = re.sub(ours, theirs, name)
    return name


def openai_weights(model_folder: Path) -> dict[str, Tensor]:
    """The weights of a model's folder under their names in openai-whisper; the output layer is the embedding again."""
    weights = load_file(model_folder / "model.safetensors")
    return {openai_name(name): weight for name, weight in weights.items() if name != "proj_out.weight"}


def dimensions(model_folder: Path) -> dict[str, int]:
    """The sizes of a model's folder, as openai-whisper names them."""
    config = read_json(model_folder / "config.json")
    return {theirs: config[ours] for theirs, ours in DIMENSIONS.items()}


def write(model_folder: Path, target: Path, precision: str) -> None:
    """Writes an export."""
    dtype = getattr(torch, precision)
    weights = {name: weight.to(dtype) for name, weight in openai_weights(model_folder).items()}
    torch.save({"dims": dimensions(model_folder), "model_state_dict": weights}, target / FILE)
    shutil.copyfile(model_folder / GENERATION, target / GENERATION)  # what it is read back with
    write_text(target / "README.md", readme(read_json(target / GENERATION)))


def readme(generation: dict[str, Any]) -> str:
    """How an export is used. generation: what generation_config.json holds."""
    heads = generation.get("alignment_heads")
    text = README.format(language=generation.get("language") or "ja")
    return text + (ALIGNMENT.format(heads=heads) if heads else "")


def decoding_options(target: Path, language: str, task: str) -> dict[str, Any]:
    """Greedy decoding without timestamps in the options of openai-whisper and mlx-whisper, for an export's folder."""
    generation = read_json(target / GENERATION)
    return {
        "language": language,
        "task": task,
        "sample_len": TEXT_TOKENS,
        "without_timestamps": True,
        "suppress_tokens": generation.get("suppress_tokens") or "",
        "suppress_blank": suppresses_blank(generation),
    }


def suppresses_blank(generation: dict[str, Any]) -> bool:
    """Whether a text may not begin with its end. generation: what generation_config.json holds."""
    return generation["eos_token_id"] in (generation.get("begin_suppress_tokens") or ())


def load(target: Path, language: str, task: str) -> Read:
    """Opens an export on the CPU, which computes in float32."""
    import whisper

    model = whisper.load_model(str(target / FILE), device="cpu")
    options = whisper.DecodingOptions(**decoding_options(target, language, task), fp16=False)

    def read(samples: Tensor) -> str:
        features = whisper.log_mel_spectrogram(whisper.pad_or_trim(samples), model.dims.n_mels)
        return str(whisper.decode(model, features, options).text).strip()

    return read


FORMAT = Format(
    name="openai",
    extra="openai",
    modules=("whisper",),
    precisions=("float16", "float32"),
    write=write,
    load=load,
)
