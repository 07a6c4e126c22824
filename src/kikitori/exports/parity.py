"""Compares what an engine reads with what the model reads here, in the same window of 30 s.

Sums are rounded differently elsewhere. Where the two most probable tokens are almost equally probable, that decides
which one is chosen, and the rest of the text may follow it: a tie. A difference of float32 or float16 that is none is a
fault of the export. Whether it is one, our own logits show: by how much they would have to change for our decoding to
begin as the other text.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Any

import torch
from torch import Tensor
from transformers import WhisperTokenizer

from kikitori.corpora.types import Speech
from kikitori.exports.formats import TEXT_TOKENS
from kikitori.exports.read_back import Reading
from kikitori.inference.greedy import greedy
from kikitori.metrics.error_rates import change, score_clips, summarise
from kikitori.model.processor import BYTE_OF, END
from kikitori.model.whisper import Whisper, encode

# Differences of two logits, at most, that are a tie in an engine of this precision. Texts of other precisions, such as
# int8, may differ anywhere and are judged by their error rates alone.
TOLERANCE = {"float32": 0.01, "float16": 0.1}
# Tokens, at most, by which a text that reaches TEXT_TOKENS is shorter elsewhere: 5 in whisper.cpp.
CUT_EARLIER = 8


@dataclass(frozen=True)
class Own:
    """Our own reading of a clip. tokens: of the text, without the end. ended: whether it was not cut off."""

    text: str
    tokens: Sequence[int]
    ended: bool
    seconds: float


def read_own(whisper: Whisper, clips: Sequence[Speech], advance: Callable[[], None]) -> list[Own]:
    """Reads clips greedily in the full window, without limits that other engines do not have.

    advance: called after each clip.
    """
    readings = []
    for clip in clips:
        start = time.perf_counter()
        prefix = whisper.processor.of(clip.language).prefix
        (row,) = greedy(whisper.model, _encoded(whisper, clip), [prefix], TEXT_TOKENS)
        (text,) = whisper.processor.decode([row.tokens])
        readings.append(Own(text, row.tokens, row.ended, time.perf_counter() - start))
        advance()
    return readings


@torch.no_grad()
def _encoded(whisper: Whisper, clip: Speech) -> Tensor:
    return encode(whisper.model, whisper.processor.log_mel(clip.samples, full_window=True)[None])


def compare(
    whisper: Whisper, clips: Sequence[Speech], own: Sequence[Own], theirs: Sequence[Reading], precision: str
) -> dict[str, Any]:
    """The figures of an engine: equal texts, error rates of both with the paired interval, seconds, differing clips.

    Rates are fractions. A differing clip has the `gap` of the logits that decided, where it can be found, and of a
    precision in TOLERANCE whether that is a tie.
    """
    rules = [whisper.processor.of(clip.language).text_language for clip in clips]
    references = [clip.text for clip in clips]
    ours, others = (score_clips(references, [read.text for read in texts], rules) for texts in (own, theirs))
    difference = change(ours, others)
    differing = [
        _difference(whisper, clip, mine, other.text, precision)
        for clip, mine, other in zip(clips, own, theirs, strict=True)
        if not _is_same(whisper, mine, other.text)
    ]
    return {
        "clips": len(clips),
        "equal": len(clips) - len(differing),
        "ties": sum(row.get("tie", False) for row in differing),
        "cer_ours": summarise(ours)["cer"],
        "cer": summarise(others)["cer"],
        "cer_change": difference["cer"],
        "cer_change_ci95": difference["cer_ci95"],
        "seconds_per_clip": round(sum(read.seconds for read in theirs) / len(clips), 3),
        "seconds_per_clip_ours": round(sum(read.seconds for read in own) / len(clips), 3),
        "differing": differing,
    }


def beyond_ties(figures: dict[str, Any]) -> list[str]:
    """The names of the clips whose texts differ, although the precision allows no more than ties."""
    return [row["clip"] for row in figures["differing"] if row.get("tie") is False]


def _is_same(whisper: Whisper, own: Own, text: str) -> bool:
    """Whether two texts are equal; one that was cut off may be cut a few tokens earlier elsewhere, or later."""
    if own.ended or not text:
        return text == own.text
    # A token that was cut off may have been in the middle of a character.
    least, ours, theirs = (
        found.rstrip("\ufffd") for found in (*whisper.processor.decode([own.tokens[:-CUT_EARLIER]]), own.text, text)
    )
    return theirs.startswith(least) and (ours.startswith(theirs) or theirs.startswith(ours))


def _difference(whisper: Whisper, clip: Speech, own: Own, text: str, precision: str) -> dict[str, Any]:
    row: dict[str, Any] = {"clip": clip.name, "ours": own.text, "theirs": text}
    gap = least_gap(whisper, clip, own, text)
    if gap < inf:
        row["gap"] = round(gap, 4)
    if precision in TOLERANCE:
        row["tie"] = gap <= TOLERANCE[precision]
    return row


def least_gap(whisper: Whisper, clip: Speech, own: Own, text: str) -> float:
    """By how much two of our logits would have to approach each other for our decoding to begin as another text.

    At each token up to the first that does not belong to that text, it is the difference to the best other token with
    which the text could go on. Engines give texts, not tokens, and a text can be divided into tokens in several ways.
    inf: if no token leads there.
    """
    end, spelled = whisper.model.config.eos_token_id, token_bytes(whisper.processor.tokenizer)
    tokens = [*own.tokens, end] if own.ended else list(own.tokens)
    logits = _logits(whisper, clip, tokens)
    gaps = [inf]
    for written in (text, f" {text}"):  # texts are given without the spaces around them
        rest = written.encode()
        for position, token in enumerate(tokens):
            others = [other for other in _next_tokens(spelled, rest, end) if other != token]
            gaps += (logits[position, token] - logits[position, others]).tolist()
            if token == end or not rest.startswith(spelled.get(token, rest + b" ")):
                break
            rest = rest[len(spelled[token]) :]
    return max(0.0, min(gaps))


@torch.no_grad()
def _logits(whisper: Whisper, clip: Speech, tokens: Sequence[int]) -> Tensor:
    """The logits from which each of our tokens was chosen, (tokens, vocabulary)."""
    model, prefix = whisper.model, whisper.processor.of(clip.language).prefix
    inputs = torch.tensor([[*prefix, *tokens[:-1]]])
    states = model.model.decoder(inputs, encoder_hidden_states=_encoded(whisper, clip)).last_hidden_state[0]
    logits: Tensor = model.proj_out(states[len(prefix) - 1 :]).float()
    logits[:, model.generation_config.suppress_tokens or []] = -inf
    logits[0, model.generation_config.begin_suppress_tokens or []] = -inf
    return logits


def _next_tokens(spelled: "TokenBytes", rest: bytes, end: int) -> Iterator[int]:
    """The tokens with which a text can go on: those that it begins with, or the end."""
    if not rest:
        yield end
    for length in range(1, min(len(rest), spelled.longest) + 1):
        yield from spelled.tokens.get(rest[:length], ())


class TokenBytes(dict[int, bytes]):
    """The bytes of each token of text, and the tokens of each sequence of bytes."""

    def __init__(self, tokenizer: WhisperTokenizer) -> None:
        words = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
        super().__init__(
            {
                i: bytes(BYTE_OF[symbol] for symbol in word)
                for word, i in words.items()
                if word != END and BYTE_OF.keys() >= {*word}
            }
        )
        self.tokens: dict[bytes, list[int]] = defaultdict(list)
        for token, spelling in self.items():
            self.tokens[spelling].append(token)
        self.longest = max(map(len, self.values()))


@lru_cache(maxsize=1)
def token_bytes(tokenizer: WhisperTokenizer) -> TokenBytes:
    """What `TokenBytes` of a tokenizer is, computed once."""
    return TokenBytes(tokenizer)
