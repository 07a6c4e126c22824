"""Reads with a Whisper in CTranslate2's format: an export of kikitori, or a folder that faster-whisper reads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperConfig, WhisperTokenizer

from kikitori.adapters.folder import FACTS
from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.inference.generate import MARGIN_S, Generated
from kikitori.inference.greedy import Row
from kikitori.model import limits
from kikitori.model.loading import choose_language_and_task
from kikitori.model.processor import Processor, make_processor
from kikitori.model.whisper import LANGUAGES_KEY, MAX_NEW_TOKENS, TIMESTAMPS_KEY, TRAINED_ON_KEY
from kikitori.runtime.errors import DataError, ModelError, one_line
from kikitori.runtime.files import plain, read_json, read_text
from kikitori.runtime.processes import cores

WEIGHTS = "model.bin"
# Clips at a time: the probabilities of all tokens of the vocabulary are kept until a batch ends, up to 47 MB a clip.
BATCH = 4
# Bytes of the weights that are digested at a time.
_BLOCK = 2**24


def is_export(folder: Path) -> bool:
    """Returns whether a folder holds a model of CTranslate2, and none that kikitori trains."""
    return (folder / WEIGHTS).is_file() and not any(folder.glob("*.safetensors*"))


class CTranslate2Engine:
    """An `Engine` of a folder with model.bin, config.json and tokenizer.json, always in windows of 30 s.

    What is known of its training is in a file that `kikitori export` adds. It decodes greedily, like
    `TorchEngine`, but a row that repeats itself goes on to MAX_NEW_TOKENS, and text beyond what can be said in the time
    is cut off afterwards. language, task: as of `load_whisper`. Raises ModelError if it cannot be used.
    """

    def __init__(self, folder: Path, language: str | None, task: str | None) -> None:
        self.folder, self._known = folder, _known(folder)
        self._model = _open(folder)
        own = (self._known.get("language"), self._known.get("task"))
        chosen = choose_language_and_task(str(folder), (language, task), own, "ja", self.languages)
        tokenizer = _tokenizer(folder)
        config = WhisperConfig(num_mel_bins=self._model.n_mels)
        self._processor = make_processor(tokenizer, config, chosen.language, chosen.task, str(folder))

    @property
    def processor(self) -> Processor:
        return self._processor

    @property
    def trained_on(self) -> Mapping[str, float] | None:
        return self._known.get("trained_on")

    @property
    def timestamps(self) -> Mapping[str, float] | None:
        return self._known.get("timestamps")

    @property
    def languages(self) -> Sequence[str]:
        return self._known.get("languages", ())

    def ready(self) -> nullcontext[None]:
        return nullcontext()

    def read(self, clips: Sequence[Tensor], language: str | None) -> list[Generated]:
        prefix, found = self.processor.of(language).prefix, list[Row]()
        for i in range(0, len(clips), BATCH):
            found += self._rows(clips[i : i + BATCH], prefix)
        texts = self.processor.decode([row.tokens for row in found])
        return [
            Generated(text, not row.ended, row.no_speech, row.logprob / (len(row.tokens) + 1), row.tokens, row.logprobs)
            for text, row in zip(texts, found, strict=True)
        ]

    def read_window(self, samples: Tensor, prefix: Sequence[int], rule: Callable[..., None]) -> Row:
        # CTranslate2 has Whisper's rules for timestamps itself.
        return self._rows([samples], prefix)[0]

    def detect(self, clips: Sequence[Tensor]) -> list[dict[str, float]]:
        rows = self._model.detect_language(self._features(clips))
        return [{token.strip("<|>"): probability for token, probability in row} for row in rows]

    def settings(self) -> dict[str, Any]:
        return {"engine": "ctranslate2", "compute_type": self._model.compute_type}

    def weights(self) -> Iterator[bytes]:
        with (self.folder / WEIGHTS).open("rb") as file:
            while block := file.read(_BLOCK):
                yield block

    def _rows(self, clips: Sequence[Tensor], prefix: Sequence[int]) -> list[Row]:
        found = self._model.generate(
            self._features(clips),
            [list(prefix)] * len(clips),
            beam_size=1,
            max_length=len(prefix) + MAX_NEW_TOKENS,
            return_logits_vocab=True,
            return_no_speech_prob=True,
        )
        return [self._row(row, len(clip) / SAMPLE_RATE) for row, clip in zip(found, clips, strict=True)]

    def _row(self, found: Any, seconds: float) -> Row:
        """The tokens of one clip: those that can be said in its time."""
        tokens, end = found.sequences_ids[0], self.processor.tokenizer.eos_token_id
        steps = [torch.from_numpy(np.array(step)).log_softmax(dim=-1) for step in found.logits[0]]
        ended = len(steps) > len(tokens)
        logprobs = [float(step[token]) for step, token in zip(steps, [*tokens, end], strict=False)]
        spoken_s = accumulate(self.processor.token_s.get(token, 0.0) for token in tokens)
        kept = next((n for n, s in enumerate(spoken_s, 1) if s > seconds + MARGIN_S), None)
        if kept is not None:
            tokens, logprobs, ended = tokens[:kept], logprobs[:kept], False
        own = logprobs[: len(tokens)]
        return Row(found.no_speech_prob, tokens, ended, logprob=sum(logprobs), logprobs=own)

    def _features(self, clips: Sequence[Tensor]) -> Any:
        import ctranslate2

        features = torch.stack([self.processor.log_mel(clip, full_window=True) for clip in clips])
        return ctranslate2.StorageView.from_array(np.ascontiguousarray(features.numpy()))


def _open(folder: Path) -> Any:
    if find_spec("ctranslate2") is None:
        raise ModelError(
            f"model.name={folder} is in CTranslate2's format, which needs another package: "
            "pip install 'kikitori[ctranslate2]'"
        )
    import ctranslate2

    ctranslate2.set_log_level(logging.ERROR)  # it warns of float16 on a CPU, which it computes in float32
    limits.ctranslate2_config(_config(folder), len(_vocabulary(folder)), f"model.name={folder}: config.json has ")
    device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
    try:
        model = ctranslate2.models.Whisper(str(folder), device=device, intra_threads=cores())
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"model.name={folder} cannot be read by CTranslate2: {one_line(error)}; export it again"
        ) from error
    if not model.is_multilingual:
        raise ModelError(f"model.name={folder} is English-only and has no language tokens; use the multilingual model")
    return model


def _config(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / "config.json")
    except DataError as error:
        raise ModelError(f"model.name={folder} cannot be read: {error.args[0]}; export it again") from error


def _tokenizer(folder: Path) -> WhisperTokenizer:
    """The tokenizer in the folder, if it is that of the model."""
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(
            f"model.name={folder} has no tokenizer.json; copy that of the model it was converted from "
            "(ct2-transformers-converter --copy_files tokenizer.json preprocessor_config.json)"
        )
    try:
        tokenizer = WhisperTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # damaged files make transformers raise errors of many classes
        raise ModelError(f"model.name={folder}: its tokenizer.json cannot be read: {one_line(error)}") from error
    ids = tokenizer.get_vocab()
    words = _vocabulary(folder)
    names = ("<|startoftranscript|>", "<|notimestamps|>", "<|endoftext|>", "<|transcribe|>")
    if any(ids.get(name, len(words)) >= len(words) or words[ids[name]] != name for name in names):
        raise ModelError(
            f"model.name={folder} has files of different Whispers: tokenizer.json is not that of its vocabulary; copy "
            "that of the model it was converted from"
        )
    return tokenizer


def _vocabulary(folder: Path) -> list[str]:
    """The tokens of the model by id."""
    try:
        if (folder / "vocabulary.json").is_file():
            return [str(word) for word in plain(read_text(folder / "vocabulary.json"))]
        return read_text(folder / "vocabulary.txt").split("\n")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"model.name={folder}: its vocabulary cannot be read: {error}") from error


def _known(folder: Path) -> dict[str, Any]:
    """What the folder says of the model's training, checked; nothing in one of another program."""
    if not (folder / FACTS).exists():
        return {}
    where = f"model.name={folder}: {FACTS}"
    try:
        facts = read_json(folder / FACTS, {"language": str, "task": str})
    except DataError as error:
        raise ModelError(f"model.name={folder} cannot be read: {error.args[0]}; export it again") from error
    found = {key: facts.get(key) for key in ("language", "task")}
    if given := facts.get(TRAINED_ON_KEY):
        found["trained_on"] = limits.trained_on(given, f"{where} has {TRAINED_ON_KEY} with ")
    if given := facts.get(TIMESTAMPS_KEY):
        found["timestamps"] = limits.timestamp_facts(given, f"{where} has {TIMESTAMPS_KEY} with ")
    if given := facts.get(LANGUAGES_KEY):
        found["languages"] = limits.languages(given, f"{where} has {LANGUAGES_KEY}: ")
    return found
