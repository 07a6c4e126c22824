"""ONNX, read by onnxruntime: three graphs, named as optimum names them, so that its classes read the folder as well.

The encoder turns log-Mel features into states. The first decoder reads the prefix, and returns the keys and values of
its tokens and of the states, layer by layer; the second one reads one token more with those in place of the states.
"""

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import Cache, DynamicCache, EncoderDecoderCache, WhisperForConditionalGeneration

from kikitori.exports.formats import TEXT_TOKENS, Format, Read, processor_in
from kikitori.runtime.files import read_json
from kikitori.runtime.processes import cores

ENCODER, FIRST, NEXT = "encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"


class _Encoder(nn.Module):
    def __init__(self, model: WhisperForConditionalGeneration) -> None:
        super().__init__()
        self.encoder = model.model.encoder

    def forward(self, input_features: Tensor) -> Tensor:
        states: Tensor = self.encoder(input_features).last_hidden_state
        return states


class _Decoder(nn.Module):
    """Returns logits (batch, tokens, vocabulary), then the keys and values of each layer: own, and of the states."""

    def __init__(self, model: WhisperForConditionalGeneration) -> None:
        super().__init__()
        self.decoder, self.proj_out = model.model.decoder, model.proj_out

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, ...]:
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        logits = self._logits(input_ids, encoder_hidden_states, cache)
        return logits, *_tensors(cache.self_attention_cache, cache.cross_attention_cache)

    def _logits(self, input_ids: Tensor, states: Tensor, cache: EncoderDecoderCache) -> Tensor:
        found = self.decoder(input_ids, encoder_hidden_states=states, past_key_values=cache, use_cache=True)
        logits: Tensor = self.proj_out(found.last_hidden_state)
        return logits


class _DecoderWithPast(_Decoder):
    """Returns the keys and values of its own tokens alone: those of the states stay the same."""

    def forward(self, input_ids: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:  # type: ignore[override]
        own, cross = DynamicCache(), DynamicCache()
        for layer in range(len(past) // 4):
            own.update(*past[4 * layer : 4 * layer + 2], layer)
            cross.update(*past[4 * layer + 2 : 4 * layer + 4], layer)
        # The decoder demands states, and does not use them where their keys and values are known.
        states = past[0].new_zeros(1, 1, self.decoder.config.d_model)
        return self._logits(input_ids, states, EncoderDecoderCache(own, cross)), *_tensors(own)


def _tensors(*caches: Cache) -> Iterator[Tensor]:
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        for layer in layers:
            yield from (layer.keys, layer.values)


class _Output(nn.Module):
    """The output layer with weights of its own, which can be quantised: elsewhere they are the embeddings, too."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights.T.contiguous())

    def forward(self, states: Tensor) -> Tensor:
        return states @ self.weights


def write(model_folder: Path, target: Path, precision: str) -> None:
    """Writes the graphs, and the model's files without its weights. Those of a large graph are a file beside it."""
    ignored = shutil.ignore_patterns("*.safetensors", "README.md")
    shutil.copytree(model_folder, target, dirs_exist_ok=True, ignore=ignored)
    with torch.no_grad(), _quiet():
        if precision == "float32":
            _export(model_folder, target)
            return
        with TemporaryDirectory(dir=target) as folder:
            _export(model_folder, Path(folder), own_output=True)
            for name in (ENCODER, FIRST, NEXT):
                _quantise(Path(folder, name), target / name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what the exporters of torch and onnxruntime say about themselves."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


class _Graph(NamedTuple):
    """What one of the files is made of. arguments: an example. dimensions: of its arguments, those that may differ."""

    module: nn.Module
    arguments: tuple[Any, ...]
    dimensions: tuple[Any, ...]
    inputs: list[str]
    outputs: list[str]


def _export(model_folder: Path, folder: Path, own_output: bool = False) -> None:
    """Writes the three graphs, one in memory at a time. own_output: whether the output layer has its own weights."""
    model = WhisperForConditionalGeneration.from_pretrained(
        model_folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    if own_output:
        model.proj_out = _Output(model.proj_out.weight)
    for name, graph in _graphs(model).items():
        _save(graph, folder / name)


def _save(graph: _Graph, path: Path) -> None:
    program = torch.onnx.export(
        graph.module.eval(),
        graph.arguments,
        dynamo=True,
        dynamic_shapes=graph.dimensions,
        input_names=graph.inputs,
        output_names=graph.outputs,
        verbose=False,
    )
    assert program is not None  # it is with dynamo
    program.save(path)


def _graphs(model: WhisperForConditionalGeneration) -> dict[str, _Graph]:
    config, batch, positions = model.config, Dim("batch_size"), Dim("encoder_sequence_length")
    length, past = Dim("decoder_sequence_length"), Dim("past_decoder_sequence_length")
    features = torch.zeros(2, config.num_mel_bins, 2 * config.max_source_positions)
    states, tokens = torch.zeros(2, 8, config.d_model), torch.zeros(2, 4, dtype=torch.long)
    decoder, layers = _Decoder(model), config.decoder_layers
    cache = list(decoder(tokens, states)[1:])
    cached = [{0: batch, 2: size} for size in (past, past, positions, positions)] * layers
    given, returned = (_names(of, layers, ("decoder", "encoder")) for of in ("past_key_values", "present"))
    sizes = ({0: batch, 1: length}, {0: batch, 1: positions})
    more, own = (tokens[:, :1], cache), _names("present", layers, ("decoder",))
    return {
        ENCODER: _Graph(_Encoder(model), (features,), ({0: batch},), ["input_features"], ["last_hidden_state"]),
        FIRST: _Graph(decoder, (tokens, states), sizes, ["input_ids", "encoder_hidden_states"], ["logits", *returned]),
        NEXT: _Graph(_DecoderWithPast(model), more, ({0: batch}, cached), ["input_ids", *given], ["logits", *own]),
    }


def _names(prefix: str, layers: int, parts: tuple[str, ...]) -> list[str]:
    """The names of keys and values in the order in which the decoders return them."""
    return [f"{prefix}.{i}.{part}.{kind}" for i in range(layers) for part in parts for kind in ("key", "value")]


def _quantise(graph: Path, target: Path) -> None:
    """Writes a graph with matrices of int8, each column with its own scale. Its inputs are quantised where it is run.

    Those from an activation function have outliers, which cost whisper-base a third of its texts, and stay float32.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes = onnx.load(graph, load_external_data=False).graph.node
    activated = {name for node in nodes if node.op_type == "Gelu" for name in node.output}
    quantize_dynamic(
        graph,
        target,
        op_types_to_quantize=["MatMul", "Gather"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=[node.name for node in nodes if activated & {*node.input}],
        use_external_data_format=graph.with_name(f"{graph.name}.data").exists(),
    )


def load(target: Path, language: str, task: str) -> Read:
    """Opens the folder with onnxruntime on the CPU, which has neither features nor texts nor a loop over tokens."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    encoder, first, following = (
        onnxruntime.InferenceSession(str(target / name), options, providers=["CPUExecutionProvider"])
        for name in (ENCODER, FIRST, NEXT)
    )
    processor, generation = processor_in(target, language, task), read_json(target / "generation_config.json")
    suppressed, suppressed_first = (generation.get(f"{of}suppress_tokens") or [] for of in ("", "begin_"))

    def read(samples: Tensor) -> str:
        features = processor.log_mel(samples, full_window=True)[None].numpy()
        states = _run(encoder, {"input_features": features})["last_hidden_state"]
        found = _run(first, {"input_ids": np.array([processor.prefix]), "encoder_hidden_states": states})
        cache: dict[str, Any] = {}
        tokens: list[int] = []
        while len(tokens) < TEXT_TOKENS:
            logits = found.pop("logits")[0, -1]
            logits[[*suppressed, *(() if tokens else suppressed_first)]] = -np.inf
            tokens.append(int(logits.argmax()))
            if tokens[-1] == generation["eos_token_id"]:
                break
            cache |= {name.replace("present", "past_key_values"): value for name, value in found.items()}
            found = _run(following, {"input_ids": np.array([tokens[-1:]]), **cache})
        return processor.decode([tokens])[0]

    return read


def _run(session: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Runs a graph and returns its outputs by their names."""
    return dict(zip((found.name for found in session.get_outputs()), session.run(None, inputs), strict=True))


FORMAT = Format(
    name="onnx",
    extra="onnx",
    modules=("onnx", "onnxscript", "onnxruntime"),
    precisions=("float32", "int8"),
    write=write,
    load=load,
    # Both decoders have the same weights. int8 is made of graphs in float32 with an output layer of their own.
    disk={"float32": 7, "int8": 13},
)
