"""The weights of a model's folder under the names of OpenAI's own code, which whisper.cpp and MLX use as well."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

GENERATION = "generation_config.json"
# Parts of a name in transformers' Whisper and in OpenAI's.
NAMES = (
    (r"^model\.", ""),
    (r"\.layers\.", ".blocks."),
    (r"\.self_attn\.", ".attn."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.q_proj\.", ".query."),
    (r"\.k_proj\.", ".key."),
    (r"\.v_proj\.", ".value."),
    (r"\.out_proj\.", ".out."),
    (r"\.self_attn_layer_norm\.", ".attn_ln."),
    (r"\.encoder_attn_layer_norm\.", ".cross_attn_ln."),
    (r"\.fc1\.", ".mlp.0."),
    (r"\.fc2\.", ".mlp.2."),
    (r"\.final_layer_norm\.", ".mlp_ln."),
    (r"^encoder\.layer_norm\.", "encoder.ln_post."),
    (r"^decoder\.layer_norm\.", "decoder.ln."),
    (r"\.embed_tokens\.", ".token_embedding."),
    (r"\.embed_positions\.weight", ".positional_embedding"),
)


def openai_name(name: str) -> str:
    """Returns the name of a weight in OpenAI's code."""
    for ours, theirs in NAMES:
        name = re.sub(ours, theirs, name)
    return name


def openai_weights(model_folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yields the name and the tensor of each weight, one in memory at a time. Output and input embeddings are one."""
    with safe_open(model_folder / "model.safetensors", framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118
            if name != "proj_out.weight":
                yield openai_name(name), weights.get_tensor(name)


def copy_generation(model_folder: Path, target: Path) -> None:
    """Copies generation_config.json, whose suppressed tokens an export is read back with."""
    shutil.copyfile(model_folder / GENERATION, target / GENERATION)
