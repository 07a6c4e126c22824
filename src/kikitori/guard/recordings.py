"""The sets of recordings that the guard reads. None of them needs a download."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, cycle, islice

from torch import Tensor

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.corpora.types import Speech
from kikitori.guard import sounds

# The two ways to read: in the windows that the model was trained in, and as stock tools do.
OWN, STOCK = READINGS = ("own windows", "full window")
# Sounds of each set without speech, and seconds of each, if the model's window is as long.
SOUNDS_EACH, SOUND_S = 4, 10.0
NO_SPEECH: dict[str, sounds.Maker] = {
    "silence": sounds.silence,
    "white noise": sounds.white_noise,
    "pink noise": sounds.pink_noise,
    "tone": sounds.tone,
}
REVERSED = "reversed speech"
# Sets of the corpus.
CLIPS, TELEPHONE, NOISY, STAMPS = "clips", "8 kHz", "noise 10 dB", "timestamps"
# What is joined of different clips, and all of NO_SPEECH.
JOINED, SOUNDS = "joined", "no speech"
SNR_DB = 10.0
# Seconds of silence between joined clips.
PAUSE_S = 0.5
# How many recordings are joined, by their length in windows: 60 and 120 s. Six can have a verdict, if all clips differ.
JOINED_COUNTS = {2: 4, 4: 2}


@dataclass(frozen=True)
class Recording:
    """A recording to read.

    set: what it belongs to. text: what is said; empty where nothing is. joints_s: seconds in the middle of the pauses
    between joined clips. is_long: whether it is longer than the model's window. repeats: whether earlier joined
    recordings, or itself, hold a clip of it already, so that its errors are no evidence of their own.
    """

    set: str
    name: str
    samples: Tensor = field(repr=False)
    text: str
    language: str
    joints_s: tuple[float, ...] = ()
    is_long: bool = False
    repeats: bool = False

    @property
    def seconds(self) -> float:
        """The length of the recording."""
        return len(self.samples) / SAMPLE_RATE


def without_speech(window_s: float, language: str) -> Iterator[Recording]:
    """Silence, noises and tones. window_s: seconds of the model's window."""
    for name, make in NO_SPEECH.items():
        for seed in range(SOUNDS_EACH):
            yield Recording(name, f"{name} {seed + 1}", make(min(SOUND_S, window_s), seed), "", language)


def of_corpus(clips: Sequence[Speech], window_s: float, separator: str, label: str = "") -> Iterator[Recording]:
    """Clips as they are, altered, reversed and joined, all of one language.

    separator: what stands between the texts of two clips. label: the end of the names of what is joined.
    """
    for seed, clip in enumerate(clips):
        yield Recording(CLIPS, clip.name, clip.samples, clip.text, clip.language)
        yield Recording(TELEPHONE, clip.name, sounds.through_telephone(clip.samples), clip.text, clip.language)
        yield Recording(NOISY, clip.name, sounds.with_noise(clip.samples, SNR_DB, seed), clip.text, clip.language)
        yield Recording(REVERSED, clip.name, clip.samples.flip(0), "", clip.language)
    endless, unused = cycle(clips), len(clips)
    for windows, count in JOINED_COUNTS.items():
        seconds = windows * window_s
        for number in range(count):
            parts = _at_least(endless, seconds)
            unused -= len(parts)
            name = f"{seconds:g} s, {number + 1}{label}"
            recording = _joined(f"{JOINED} {seconds:g} s", name, parts, separator, window_s)
            yield replace(recording, repeats=unused < 0)


def for_timestamps(clips: Sequence[Speech], window_s: float, separator: str) -> Iterator[Recording]:
    """Neighbouring clips joined to what the model's window holds."""
    rest = list(clips)
    while rest:
        lengths = accumulate(len(clip.samples) / SAMPLE_RATE + PAUSE_S for clip in rest)
        fitting = sum(length <= window_s for length in lengths)
        if fitting > 1:
            yield _joined(STAMPS, rest[0].name, rest[:fitting], separator, window_s)
        rest = rest[max(fitting, 1) :]


def of_others(name: str, clips: Sequence[Speech]) -> Iterator[Recording]:
    """The clips of a set that the user names."""
    return (Recording(name, clip.name, clip.samples, clip.text, clip.language) for clip in clips)


def _at_least(clips: Iterator[Speech], seconds: float) -> list[Speech]:
    """The next clips, until they are so long together with their pauses."""
    parts: list[Speech] = []
    while sum(len(clip.samples) / SAMPLE_RATE + PAUSE_S for clip in parts) - PAUSE_S < seconds:
        parts += islice(clips, 1)
    return parts


def _joined(set_name: str, name: str, parts: Sequence[Speech], separator: str, window_s: float) -> Recording:
    samples, joints = sounds.joined([part.samples for part in parts], PAUSE_S)
    text = separator.join(part.text for part in parts)
    is_long = len(samples) > window_s * SAMPLE_RATE
    return Recording(set_name, name, samples, text, parts[0].language, tuple(joints), is_long)
