"""Divides a recording into sections of some minutes while it is decoded, so that hours of it take little memory."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kikitori.audio.formats import AudioError
from kikitori.audio.waveform import SAMPLE_RATE, Part
from kikitori.inference.segments import split_at_pauses
from kikitori.inference.transcribe import LEAST_S

# Seconds of a section, at most; a recording that is no longer is one section. A section is cut in a pause, at most
# CUT_WITHIN_S before its end.
SECTION_S, CUT_WITHIN_S = 120, 30.0


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
    start: int = 0,
    only_speech: Callable[[Tensor], Tensor] = lambda samples: samples,
    most_s: float | None = None,
) -> Iterator[Section]:
    """Yields the sections of a recording that is decoded in parts: each sample is in one of them.

    start: the sample with which the first begins; what is before it was read before. only_speech: silences all else,
    before pauses are looked for. most_s: seconds of a section, SECTION_S by default. Raises AudioError for a recording
    that holds next to nothing.
    """
    most, known_s, to_skip = round((most_s or SECTION_S) * SAMPLE_RATE), 0.0, start
    held: list[Tensor] = []
    for samples, known_s in parts:
        held += samples[to_skip:].split(most)
        to_skip = max(0, to_skip - len(samples))
        while sum(map(len, held)) > most:
            joined = torch.cat(held)
            speech = only_speech(joined[:most])
            cut = _pause(speech)
            held, speech = [joined[cut:].clone()], speech[:cut].clone()
            del joined
            yield Section(speech, start, False, known_s)
            start += cut
    rest = torch.cat([torch.empty(0), *held])
    seconds = (start + len(rest)) / SAMPLE_RATE
    if seconds < LEAST_S:
        raise AudioError(f"holds {seconds:.3f} s of audio; there is nothing to transcribe")
    yield Section(only_speech(rest), start, True, max(known_s, seconds))


def _pause(samples: Tensor) -> int:
    """The sample in the last pause of a section, behind which the next one begins."""
    around = round(2 * CUT_WITHIN_S * SAMPLE_RATE)
    pieces = split_at_pauses(samples[-around:], CUT_WITHIN_S)
    return len(samples) - around + pieces[-1].start
