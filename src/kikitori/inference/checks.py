"""Finds text that does not fit its audio: text of silence, repetitions, texts that were cut off or are too short."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import eq

import torch
from torch import Tensor

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.inference.confidence import Token, cut_out, stripped
from kikitori.inference.generate import Generated
from kikitori.metrics.speech_rate import fastest_s

# Peak level in dB of full scale below which audio is silent, as data.silence_dbfs.
SILENCE_DBFS = -50.0
SILENCE_PEAK = 10 ** (SILENCE_DBFS / 20)
# Whisper's own test for audio without speech: the probability of the no-speech token is above the first, and the mean
# log probability of the text below the second (or, here, the text repeats itself: repetitions are probable). Its own
# numbers are 0.6 and -1; fine-tuned models are surer of what they write. On white and pink noise, whisper-base has 0.70
# to 0.93 and less than -1.6, tuned on 36 clips 0.57 to 0.75 and -0.96 to -1.65; on 60 clips of Common Voice, at most
# 0.41 and 0.03.
NO_SPEECH, NO_SPEECH_LOGPROB = 0.5, -0.8
# Above this probability there is none, however sure the text is: in 30 s, both models write the same thanks to viewers
# into pauses of clips, at -0.4 to -0.7, with 0.82 to 0.93. Clips in white noise of their own level and 5 dB more have
# at most 0.34.
SURELY_NO_SPEECH = 0.8
# Speech is at most this many dB below the loudest twentieth of a piece.
SPEECH_RANGE_DB = 25.0
# How often a unit stands one after the other at least, and how long that takes at the fastest, to be a repetition of
# the model's: people say はい seven times, too.
REPEATS, REPEATS_S = 4, 1.0
# Text per second of speech, in seconds at the fastest, below which there is too little. Common Voice's sentences in
# Japanese have 0.23 or more, at a median of 0.45, with its single words left out as shorter than SHORT_SPEECH_S.
MIN_DENSITY, SHORT_SPEECH_S = 0.12, 1.5

# Doubts about the text of a piece.
NONE, NO_SPEECH_FOUND, CUT, REPEATED, LITTLE = "", "no speech", "cut off", "repeats itself", "little text"


def least_density(trained_on: Mapping[str, float] | None) -> float:
    """Returns the text per second of speech below which there is too little, of a model with these `trained_on`."""
    return min(MIN_DENSITY, trained_on["density"] / 2) if trained_on else MIN_DENSITY


def is_silent(samples: Tensor) -> bool:
    """Returns whether there is nothing to transcribe in (samples,)."""
    return len(samples) == 0 or float(samples.abs().max()) < SILENCE_PEAK


def speech_s(samples: Tensor) -> float:
    """Returns the seconds of (samples,) at 16 kHz that are about as loud as its loudest parts."""
    frame = SAMPLE_RATE // 10
    energy = samples[: len(samples) // frame * frame].reshape(-1, frame).square().mean(dim=1)
    if not len(energy):
        return 0.0
    level = 10 * torch.log10(energy + 1e-10)
    lowest = max(SILENCE_DBFS, float(level.quantile(0.95)) - SPEECH_RANGE_DB)
    return int((level > lowest).sum()) * frame / SAMPLE_RATE


def repetition(text: str) -> slice | None:
    """Returns the part of a text to remove, so that of its longest repetition one unit is left; None without one."""
    longest, start, period = 0, 0, 0
    for distance in range(1, len(text) // REPEATS + 1):
        at = 0
        for same, run in groupby(map(eq, text, text[distance:])):
            length = len(list(run))
            if same and length > longest and length >= (REPEATS - 1) * distance:
                longest, start, period = length, at, distance
            at += length
    stretch = longest + period
    if fastest_s(text[start : start + stretch]) < REPEATS_S:
        return None
    return slice(start + period, start + stretch // period * period)


def without_repetition(text: str) -> str:
    """Returns the text with the longest repetition reduced to one unit; the text itself if it has none."""
    part = repetition(text)
    return (text[: part.start] + text[part.stop :]).strip() if part else text


def kept_tokens(tokens: Sequence[Token], text: str) -> tuple[Token, ...]:
    """Returns those of the generated tokens that are left in the text that `examine` returned."""
    part = repetition("".join(token.text for token in tokens))
    kept = stripped(cut_out(tokens, part) if part else tokens)
    return kept if text else ()


def examine(generated: Generated, samples: Tensor, min_density: float) -> tuple[str, str]:
    """Returns the text to use for (samples,) at 16 kHz, and the doubt about it.

    min_density: the text per second of speech, as `MIN_DENSITY`.
    """
    text = without_repetition(generated.text)
    repeats = text != generated.text
    is_unsure = repeats or generated.mean_logprob < NO_SPEECH_LOGPROB
    if generated.no_speech > (NO_SPEECH if is_unsure else SURELY_NO_SPEECH):
        return "", NO_SPEECH_FOUND
    if repeats:
        return text, REPEATED
    if generated.cut:
        return text, CUT
    seconds = speech_s(samples)
    if seconds >= SHORT_SPEECH_S and fastest_s(text) < min_density * seconds:
        return text, LITTLE
    return text, NONE
