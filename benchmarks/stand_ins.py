"""Stand-ins for weights and speech: a Whisper with random weights, a corpus of joined clips.

They cost as much as real ones; the transcripts are meaningless.
"""

import csv
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from torchaudio.functional import resample
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

from kikitori.audio.waveform import SAMPLE_RATE, decode
from kikitori.model.loading import load_whisper
from kikitori.model.processor import END, SPECIAL_TOKENS, START
from kikitori.runtime.paths import DEMO

# Shape of openai/whisper-base.
BASE = {"d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 8}
BASE |= {"decoder_attention_heads": 8, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048, "vocab_size": 51865}
END_ID = 50257
# Kana, CJK punctuation and Chinese characters. Whisper uses about one token per Japanese character.
CHARACTERS = [chr(code) for block in (range(0x3000, 0x3100), range(0x4E00, 0xA000)) for code in block]

# The duration of clips is log-normal. Their mean is that of all Japanese clips of Common Voice 17 (avgDurationSecs in
# github.com/common-voice/cv-dataset), the spread of their logarithm that of 60 clips sampled from release 6.1, which
# have 4 characters per second.
MEAN_S, LOG_SPREAD = 4.811, 0.322
# The demo has 10 characters per second without pauses. With speech in half of a clip, transcripts are similarly long.
SPEECH_SHARE = 0.5
RATE = 48_000


def whisper_base(folder: Path) -> Path:
    """Writes a model folder with the shape of whisper-base and random weights, for kikitori and transformers."""
    torch.manual_seed(0)
    ids = {"bos_token_id": END_ID, "eos_token_id": END_ID, "pad_token_id": END_ID, "decoder_start_token_id": END_ID + 1}
    config = WhisperConfig(**BASE, **ids, begin_suppress_tokens=None)
    raw = folder / "raw"
    WhisperForConditionalGeneration(config).save_pretrained(raw)
    tokenizer().save_pretrained(raw)
    WhisperFeatureExtractor().save_pretrained(raw)
    # Loading and saving with kikitori writes the generation settings that every Whisper has.
    load_whisper(str(raw), "ja", "transcribe").save(folder / "whisper-base")
    return folder / "whisper-base"


def tokenizer() -> WhisperTokenizer:
    """Returns a tokenizer with Whisper's special tokens at their ids, after one token per Japanese character."""
    merges = list(dict.fromkeys(merge for character in CHARACTERS for merge in merges_of(character)))
    symbols = [*sorted(ByteLevel.alphabet()), *("".join(merge) for merge in merges)]
    symbols += [f"filler{i}" for i in range(END_ID - len(symbols))]
    vocabulary = {symbol: i for i, symbol in enumerate([*symbols, END])}
    tokens = WhisperTokenizer(vocab=vocabulary, merges=merges, pad_token=END)
    tokens.add_special_tokens({"extra_special_tokens": SPECIAL_TOKENS})
    assert tokens.convert_tokens_to_ids([END, START]) == [END_ID, END_ID + 1]
    return tokens


def merges_of(character: str) -> Iterator[tuple[str, str]]:
    """Yields the merges that join the three bytes of a character: first two of them, then all."""
    ((first, second, third), _) = ByteLevel(add_prefix_space=False).pre_tokenize_str(character)[0]
    yield first, second
    yield first + second, third


def common_voice(folder: Path, train_clips: int, eval_clips: int) -> Path:
    """Writes a Common Voice language folder of joined and cut demo clips with the durations of Common Voice clips."""
    draw = np.random.default_rng(0)
    sources = demo_rows()
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    for table, count in (("train", train_clips), ("dev", eval_clips), ("test", 1)):
        with (folder / f"{table}.tsv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, lineterminator="\n")
            writer.writerow(["client_id", "path", "sentence"])
            for i in range(count):
                seconds = draw.lognormal(math.log(MEAN_S) - LOG_SPREAD**2 / 2, LOG_SPREAD)
                waveform, sentence = joined(sources, draw, seconds)
                name = f"{table}_{i:06}.mp3"
                samples = resample(waveform, SAMPLE_RATE, RATE).clamp(-1, 1).numpy()
                soundfile.write(folder / "clips" / name, samples, RATE, format="MP3")
                writer.writerow([f"{table} {i}", name, sentence])
    return folder


def demo_rows() -> list[tuple[Path, str]]:
    """Returns file and sentence of the demo's training clips."""
    with (DEMO / "train.tsv").open(encoding="utf-8", newline="") as table:
        rows = csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(DEMO / "clips" / row["path"], row["sentence"]) for row in rows]


def joined(sources: list[tuple[Path, str]], draw: np.random.Generator, seconds: float) -> tuple[Tensor, str]:
    """Joins random clips until half of `seconds` is speech, with a pause after each; returns (samples,) at 16 kHz."""
    length = round(seconds * SAMPLE_RATE)
    clips: list[Tensor] = []
    sentences: list[str] = []
    while sum(map(len, clips)) < SPEECH_SHARE * length - SAMPLE_RATE / 2:
        path, sentence = sources[draw.integers(len(sources))]
        clips.append(decode(path))
        sentences.append(sentence)
    pause = torch.zeros(max(0, length - sum(map(len, clips))) // len(clips))
    waveform = torch.cat([part for clip in clips for part in (clip, pause)])[:length]
    return torch.nn.functional.pad(waveform, (0, length - len(waveform))), "、".join(sentences)
