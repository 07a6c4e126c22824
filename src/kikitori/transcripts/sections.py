"""Divides a recording into sections of some minutes while it is decoded, so that hours of it take little memory."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kikitori.audio.formats import AudioError
from kikitori.audio.waveform import SAMPLE_RATE, Part
from kikitori.inference.segments import PAUSE_STEPS, STEP, loudness_db
from kikitori.inference.transcribe import LEAST_S

# A section is cut at the quietest moment of its last seconds.
CUT_WITHIN_S = 30.0


@dataclass(frozen=True)
class Section:
    """Samples of a recording, (samples,) at 16 kHz, from the sample `start` of it.

    is_last: whether the recording ends with it. known_s: the seconds of the recording, as far as they are known.
    """

    samples: Tensor
    start: int
    is_last: bool
    known_s: float

    @property
    def end(self) -> int:
        """The sample of the recording with which the next section begins."""
        return self.start + len(self.samples)


def sections_of(
    parts: Iterable[Part],
    most_s: int,
    start: int = 0,
    only_speech: Callable[[Tensor], Tensor] = lambda samples: samples,
) -> Iterator[Section]:
    """Yields the sections of a recording that is decoded in parts: each sample is in one of them.

    most_s: seconds of a section, at most, above CUT_WITHIN_S; a recording that is no longer is one section. start: the
    sample with which the first begins; what is before it was read before. only_speech: silences all else, before a
    quiet moment is looked for. Raises AudioError for a recording that holds next to nothing.
    """
    most, known_s, to_skip = most_s * SAMPLE_RATE, 0.0, start
    held: list[Tensor] = []
    for samples, known_s in parts:
        held += samples[to_skip:].split(most)
        to_skip = max(0, to_skip - len(samples))
        while sum(map(len, held)) > most:
            joined = torch.cat(held)
            speech = only_speech(joined[:most])
            cut = _quietest(speech)
            held, speech = [joined[cut:].clone()], speech[:cut].clone()
            del joined
            yield Section(speech, start, False, known_s)
            start += cut
    rest = torch.cat([torch.empty(0), *held])
    seconds = (start + len(rest)) / SAMPLE_RATE
    if seconds < LEAST_S:
        raise AudioError(f"holds {seconds:.3f} s of audio; there is nothing to transcribe")
    yield Section(only_speech(rest), start, True, max(known_s, seconds))


def _quietest(samples: Tensor) -> int:
    """The sample at the quietest moment of the last CUT_WITHIN_S, with which the next section begins."""
    first = len(samples) - round(CUT_WITHIN_S * SAMPLE_RATE)
    edge = PAUSE_STEPS // 2  # steps whose surroundings are not all in the section
    return first + STEP * (edge + int(loudness_db(samples[first:])[edge:-edge].argmin()))
