"""The file for whisper.cpp: what is in it, byte by byte, and that whisper.cpp reads it."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from exportable import BASE, LARGE_V3, write_exportable
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor

from kikitori.corpora.types import Speech
from kikitori.exports.formats import find_format
from kikitori.exports.ggml import FILE, q8_0, write
from kikitori.exports.parity import beyond_ties, compare, read_own
from kikitori.exports.read_back import Reading, read_back
from kikitori.model.whisper import Whisper
from kikitori.runtime.errors import ExportFailed

TYPES = {0: np.dtype("<f4"), 1: np.dtype("<f2")}
Q8_0 = np.dtype([("scale", "<f2"), ("values", "i1", 32)])


class Contents(NamedTuple):
    """What a file holds. tensors: the type and the values of each."""

    sizes: tuple[int, ...]
    filters: np.ndarray
    words: list[bytes]
    tensors: dict[str, tuple[int, np.ndarray]]


class Reader:
    def __init__(self, path: Path) -> None:
        self.data, self.at = path.read_bytes(), 0

    def bytes(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]

    def numbers(self, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}i", self.bytes(4 * count))

    def tensor(self) -> tuple[str, int, np.ndarray]:
        dimensions, length, kind = self.numbers(3)
        shape = self.numbers(dimensions)[::-1]
        name = self.bytes(length).decode()
        if kind == 8:
            blocks = np.frombuffer(self.bytes(int(np.prod(shape)) // 32 * Q8_0.itemsize), Q8_0)
            return name, kind, dequantised(blocks).reshape(shape)
        dtype = TYPES[kind]
        return name, kind, np.frombuffer(self.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)


def dequantised(blocks: np.ndarray) -> np.ndarray:
    values: np.ndarray = blocks["values"].astype(np.float32) * blocks["scale"].astype(np.float32)[:, None]
    return values


def contents(path: Path) -> Contents:
    reader = Reader(path)
    assert reader.bytes(4) == b"lmgg"
    sizes = reader.numbers(11)
    mels, bins = reader.numbers(2)
    filters = np.frombuffer(reader.bytes(4 * mels * bins), "<f4").reshape(mels, bins)
    words = [reader.bytes(reader.numbers(1)[0]) for _ in range(reader.numbers(1)[0])]
    tensors = {}
    while reader.at < len(reader.data):
        name, kind, values = reader.tensor()
        tensors[name] = kind, values
    assert reader.at == len(reader.data)
    return Contents(sizes, filters, words, tensors)


@pytest.fixture(scope="module")
def target(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ggml")
    write(model_folder, folder, "float16")
    return folder


@pytest.fixture(scope="module")
def written(target: Path) -> Contents:
    return contents(target / FILE)


def test_the_head_of_the_file_states_the_sizes(written: Contents, exported: Whisper) -> None:
    config = exported.model.config
    sizes = BASE if config.vocab_size == 51_865 else LARGE_V3
    assert written.sizes == (sizes.vocab_size, 1500, 64, 2, 2, 448, 64, 2, 2, sizes.num_mel_bins, 1)
    reference = WhisperFeatureExtractor(sizes.num_mel_bins).mel_filters.T
    assert np.array_equal(written.filters, reference.astype(np.float32))


def test_the_words_are_bytes_in_the_order_of_their_ids_without_special_tokens(
    written: Contents, exported: Whisper
) -> None:
    assert len(written.words) == 50_257
    assert (written.words[0], written.words[220], written.words[255]) == (b"!", b" ", b"\xad")
    for number in (0, 256, 1_000, 30_000, 50_256):
        assert written.words[number].decode() == exported.processor.tokenizer.decode([number])


def test_every_weight_is_there_once_and_small_ones_are_float32(written: Contents, exported: Whisper) -> None:
    from kikitori.exports.openai import openai_name

    names = {name for name, _ in exported.model.named_parameters()}
    assert written.tensors.keys() == {openai_name(name) for name in names}
    for name, weights in exported.model.named_parameters():
        kind, values = written.tensors[openai_name(name)]
        small = weights.ndim == 1 or "embed_positions" in name
        assert kind == (0 if small else 1), name
        expected = weights.detach()[:, None] if ".conv" in name and small else weights.detach()
        assert np.array_equal(values, (expected if small else expected.half()).numpy()), name


def test_int8_quantises_matrices_but_neither_convolutions_nor_positions(model_folder: Path, tmp_path: Path) -> None:
    write(model_folder, tmp_path, "int8")
    found = contents(tmp_path / FILE)
    assert found.sizes[-1] == 2_007
    kinds = {name: kind for name, (kind, _) in found.tensors.items()}
    assert kinds["decoder.token_embedding.weight"] == kinds["encoder.blocks.1.mlp.0.weight"] == 8
    assert kinds["encoder.conv1.weight"] == 1
    assert kinds["decoder.positional_embedding"] == kinds["encoder.conv1.bias"] == kinds["encoder.ln_post.bias"] == 0


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 3), st.floats(1e-3, 1e3), st.integers(0, 1_000))
def test_a_quantised_value_is_off_by_half_a_step_of_its_block(rows: int, blocks: int, scale: float, seed: int) -> None:
    weights = scale * torch.randn(rows, 32 * blocks, generator=torch.Generator().manual_seed(seed))
    data = q8_0(weights)
    assert len(data) == rows * blocks * 34
    found = dequantised(np.frombuffer(data, Q8_0))
    expected = weights.reshape(-1, 32).numpy()
    steps = np.abs(expected).max(axis=1, keepdims=True) / 127
    # The scale is rounded to float16, by which even the largest value is off.
    assert (np.abs(found - expected) <= steps * (0.5 + 127 * 2**-11) + 1e-6).all()


def test_a_block_of_zeros_stays_zero() -> None:
    assert q8_0(torch.zeros(1, 32)) == bytes(34)


def test_whisper_cpp_reads_the_texts_and_derives_the_special_tokens(
    target: Path, exported: Whisper, noises: Sequence[Speech]
) -> None:
    cpp = pytest.importorskip("_pywhispercpp", reason="needs the extra ggml")
    read = find_format("ggml").load(target, "ja", "transcribe")
    own = read_own(exported, noises, lambda: None)
    theirs = [Reading(read(clip.samples), 0.0) for clip in noises]
    figures = compare(exported, noises, own, theirs, "float16")
    assert figures["equal"] >= 2
    assert not beyond_ties(figures), figures
    context = read.__closure__[0].cell_contents._ctx  # type: ignore[attr-defined]
    ids = exported.processor.tokenizer.get_vocab()
    special = {
        "endoftext": cpp.whisper_token_eot(context),
        "startoftranscript": cpp.whisper_token_sot(context),
        "ja": cpp.whisper_token_lang(context, cpp.whisper_lang_id("ja")),
        "su": cpp.whisper_token_lang(context, cpp.whisper_lang_id("su")),
        "transcribe": cpp.whisper_token_transcribe(context),
        "translate": cpp.whisper_token_translate(context),
        "startofprev": cpp.whisper_token_prev(context),
        "notimestamps": cpp.whisper_token_not(context),
        "0.00": cpp.whisper_token_beg(context),
    }
    assert special == {name: ids[f"<|{name}|>"] for name in special}


@pytest.mark.long
def test_another_models_file_and_a_damaged_one_are_found(
    exported: Whisper, noises: Sequence[Speech], tmp_path: Path
) -> None:
    pytest.importorskip("_pywhispercpp", reason="needs the extra ggml")
    of, target = find_format("ggml"), tmp_path / "export"
    target.mkdir()
    write(write_exportable(tmp_path / "other", seed=1), target, "float16")
    theirs = read_back(of, target, noises, "transcribe", lambda: None)
    figures = compare(exported, noises, read_own(exported, noises, lambda: None), theirs, "float16")
    assert len(beyond_ties(figures)) == len(noises)
    (target / FILE).write_bytes((target / FILE).read_bytes()[:100_000])
    with pytest.raises(ExportFailed, match=r"to=ggml: the engine .* after 0 of 3 clips"):
        read_back(of, target, noises, "transcribe", lambda: None)
