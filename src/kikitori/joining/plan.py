"""What each training example holds: one clip, or clips joined into a window. A pure function of (seed, step, clip).

The plan holds places and numbers only, and is made in the process of the sampler; a loader worker follows it. So the
examples depend neither on the number of workers nor on that of processes, and a resumed run makes the same ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean
from typing import Literal, NamedTuple, get_args

import numpy as np

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.joining.settings import Joining
from kikitori.model.processor import SAMPLES_PER_STAMP, Processor
from kikitori.runtime.errors import ConfigError

NonSpeech = Literal["silence", "white noise", "pink noise"]
NON_SPEECH: tuple[NonSpeech, ...] = get_args(NonSpeech)
# How often another clip is drawn in place of one that the window holds already.
TRIES = 10
# Clips whose examples are planned to describe those of a training.
SAMPLE = 1_000
# Seconds of the shortest window without speech.
SHORTEST_S = 1.0


class Placed(NamedTuple):
    """A clip of a window, by its index: its first sample in the window, and the sample after its last."""

    clip: int
    start: int
    end: int


class Noise(NamedTuple):
    """What a window without speech holds. dbfs: the level of noise. seed: of its samples."""

    kind: NonSpeech
    samples: int
    dbfs: float
    seed: int


class Example(NamedTuple):
    """What a training example holds.

    sentences: clips that are in the window as a whole. crossing: one that the window's end cuts off. joined: whether
    the window is the model's full one. stamped: whether the labels have timestamps. previous: clips whose texts are the
    prompt, in order. noise: in place of clips. num_tokens: supervised ones.
    """

    sentences: tuple[Placed, ...] = ()
    crossing: Placed | None = None
    joined: bool = False
    stamped: bool = False
    previous: tuple[int, ...] = ()
    noise: Noise | None = None
    num_tokens: int = 0

    def samples(self, window: int) -> int:
        """The samples up to the end of its last clip, at most those of the window."""
        if self.noise:
            return self.noise.samples
        return window if self.crossing else self.sentences[-1].end


@dataclass(frozen=True)
class Planner:
    """Plans the examples of a training split.

    samples: of each clip. first_tokens, next_tokens: text tokens of each clip, alone and after another one, which a
    separator may precede. speakers: of each clip, None if unknown; they serve to choose clips and go nowhere else.
    languages: of each clip; those of a window, and of its prompt, are of one. None: all clips are of one.
    """

    joining: Joining
    processor: Processor
    seed: int
    samples: Sequence[int]
    first_tokens: Sequence[int]
    next_tokens: Sequence[int]
    speakers: Sequence[str | None]
    languages: Sequence[str | None] | None = None

    @property
    def window(self) -> int:
        """Samples of the model's full window."""
        return round(self.processor.window_s * SAMPLE_RATE)

    def __call__(self, step: int, clip: int) -> Example:
        """Plans the example that begins with a clip in a step."""
        rng = np.random.default_rng((self.seed, step, clip))
        # All drawn at once, so that one share does not change what the others draw.
        non_speech, joined, stamped, previous = rng.random(4).tolist()
        labels_vary = self.joining.share > 0
        stamps = labels_vary and stamped < self.joining.timestamps
        if non_speech < self.joining.non_speech:
            return self._finished(Example(stamped=stamps, noise=self._noise(rng)))
        example = Example((Placed(clip, 0, self.samples[clip]),), stamped=stamps)
        if self._label_count(example) > self.processor.max_label_tokens:
            # A text that fits without timestamps alone.
            example = example._replace(stamped=False)
        if joined < self.joining.share:
            example = self._fill(rng, example)
        if labels_vary and previous < self.joining.previous_text:
            example = example._replace(previous=self._previous(rng, example))
        return self._finished(example)

    @property
    def timestamps(self) -> float:
        """The share of the examples that have timestamps."""
        return self.joining.timestamps if self.joining.share else 0.0

    def sample(self) -> list[Example]:
        """Examples as a training has them, of at most SAMPLE clips."""
        return [self(0, clip) for clip in range(0, len(self.samples), -(-len(self.samples) // SAMPLE))]

    def speech_s(self) -> list[float]:
        """Seconds of the examples in the sample that hold speech; none if all of them are noise."""
        return [example.samples(self.window) / SAMPLE_RATE for example in self.sample() if not example.noise]

    def facts(self) -> dict[str, float]:
        """Means over the sample: the clips whose texts an example holds, and its seconds; for results and the log."""
        sample = self.sample()
        seconds = mean(example.samples(self.window) for example in sample) / SAMPLE_RATE
        clips = mean(len(example.sentences) for example in sample)
        return {"clips_per_example": round(clips, 2), "seconds_per_example": round(seconds, 2)}

    def _fill(self, rng: np.random.Generator, example: Example) -> Example:
        """Puts clips one after the other until the window is full, or no further text fits into the labels."""
        anchor = example.sentences[0]
        start = self._pause(rng)
        if start + anchor.end > self.window:
            start = 0
        example = example._replace(sentences=(Placed(anchor.clip, start, start + anchor.end),), joined=True)
        while not example.crossing:
            last = example.sentences[-1]
            start = _on_grid(last.end) + self._pause(rng)
            clip = self._next(rng, last.clip, [placed.clip for placed in example.sentences])
            if clip is None or start >= self.window:
                break
            placed = Placed(clip, start, start + self.samples[clip])
            if placed.end <= self.window:
                longer = example._replace(sentences=(*example.sentences, placed))
            elif example.stamped:
                longer = example._replace(crossing=placed._replace(end=self.window))
            else:  # without timestamps nothing tells that its text is left out
                break
            if self._label_count(longer) > self.processor.max_label_tokens:
                break
            example = longer
        return example

    def _previous(self, rng: np.random.Generator, example: Example) -> tuple[int, ...]:
        """Draws the clips before a window, of at most a window's length, but at least one."""
        length, clips = rng.random() * self.window, [example.sentences[0].clip]
        used = [placed.clip for placed in (*example.sentences, *([example.crossing] if example.crossing else []))]
        while (clip := self._next(rng, clips[0], [*used, *clips])) is not None:
            clips.insert(0, clip)
            length -= self.samples[clip]
            if length <= 0:
                break
        return tuple(clips[:-1])

    def _next(self, rng: np.random.Generator, clip: int, used: Sequence[int]) -> int | None:
        """Draws a clip next to `clip` that is not in use; None if none is found."""
        language, speaker = self._languages[clip], self.speakers[clip]
        same, among = rng.random() < self.joining.same_speaker, self._by_speaker.get((language, speaker))
        if same and among is not None and (found := _draw(rng, among, used)) is not None:
            return found
        return _draw(rng, self._by_language[language], used)

    @cached_property
    def _languages(self) -> Sequence[str | None]:
        return self.languages or [None] * len(self.samples)

    @cached_property
    def _by_language(self) -> dict[str | None, list[int]]:
        found: dict[str | None, list[int]] = {}
        for clip, language in enumerate(self._languages):
            found.setdefault(language, []).append(clip)
        return found

    @cached_property
    def _by_speaker(self) -> dict[tuple[str | None, str | None], list[int]]:
        found: dict[tuple[str | None, str | None], list[int]] = {}
        for clip, (language, speaker) in enumerate(zip(self._languages, self.speakers, strict=True)):
            if speaker is not None:
                found.setdefault((language, speaker), []).append(clip)
        return found

    def _pause(self, rng: np.random.Generator) -> int:
        """Draws the samples of a silence, a whole number of timestamps."""
        low, high = self.joining.silence_s
        return round((low + (high - low) * rng.random()) * SAMPLE_RATE / SAMPLES_PER_STAMP) * SAMPLES_PER_STAMP

    def _noise(self, rng: np.random.Generator) -> Noise:
        shortest = min(SHORTEST_S, self.processor.window_s)
        seconds = shortest + (self.processor.window_s - shortest) * rng.random()
        low, high = self.joining.noise_dbfs
        kind, level = NON_SPEECH[rng.integers(len(NON_SPEECH))], low + (high - low) * rng.random()
        return Noise(kind, round(seconds * SAMPLE_RATE), level, int(rng.integers(2**62)))

    def _finished(self, example: Example) -> Example:
        # The start token has no loss, and neither has the prompt.
        return example._replace(num_tokens=self._label_count(example) - 1)

    def _label_count(self, example: Example) -> int:
        """The length of the labels without a prompt: `label_ids` makes as many."""
        texts = [self.first_tokens[placed.clip] for placed in example.sentences[:1]]
        texts += [self.next_tokens[placed.clip] for placed in example.sentences[1:]]
        # Start, language, task, end; then the timestamps, or the token that there are none.
        stamps = 2 * len(texts) + bool(example.crossing and texts) if example.stamped else 1
        return 4 + sum(texts) + stamps


def _draw(rng: np.random.Generator, clips: Sequence[int], used: Sequence[int]) -> int | None:
    """Draws one of the clips that is not in use; None if TRIES of them are. A list of the others would take too long.

    A speaker may have read the whole corpus.
    """
    drawn = (clips[place] for place in rng.integers(len(clips), size=TRIES).tolist())
    return next((clip for clip in drawn if clip not in used), None)


def _on_grid(sample: int) -> int:
    """The first timestamp at or after a sample."""
    return -(-sample // SAMPLES_PER_STAMP) * SAMPLES_PER_STAMP


def check_joinable(planner: Planner) -> None:
    """Raises ConfigError if the settings ask for what this model or these clips do not have."""
    joining, window_s = planner.joining, planner.processor.window_s
    if not joining.share:
        return
    if joining.timestamps and planner.processor.timestamp_begin is None:
        raise ConfigError(
            f"joining.timestamps={joining.timestamps}: the model's tokenizer has no timestamps (<|0.00|> to "
            f"<|{window_s:.2f}|>); for a model that is made here pass model.timestamps=true, else joining.timestamps=0"
        )
    if len(planner.samples) < 2:
        raise ConfigError(f"joining.share={joining.share}: there is only one training clip; pass joining=none")
    shortest = sorted(planner.samples)[:2]
    lengths = " and ".join(f"{samples / SAMPLE_RATE:.1f}" for samples in shortest)
    # Before the first clip and between the two, and nothing where the first one fills the window.
    silence = 2 * joining.silence_s[0] * SAMPLE_RATE
    if sum(shortest) + silence <= planner.window:
        return
    if sum(shortest) <= planner.window:
        raise ConfigError(
            f"joining.silence_s={list(joining.silence_s)}: with so much silence before and between them, no two "
            f"training clips fit into the model's window of {window_s:g} s (the shortest have {lengths} s); lower it, "
            "or pass joining=none"
        )
    raise ConfigError(
        f"joining.share={joining.share}: no two training clips fit into the model's window of {window_s:g} s (the "
        f"shortest have {lengths} s), and the corpus has no timestamps within its clips, so that there are none to "
        f"learn (joining.timestamps={joining.timestamps}): divide the recordings into sentences (data=manifest with "
        "data.start_column and data.end_column), or pass joining=none"
    )
