"""A recording is divided while it is decoded: every sample is in one section, and sections are cut in pauses."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from kikitori.audio.formats import AudioError
from kikitori.audio.waveform import SAMPLE_RATE, Part
from kikitori.transcripts.sections import CUT_WITHIN_S, sections_of

SECTION_S = 70


def talk(seconds: int) -> Tensor:
    """Noise as loud as speech, with a pause of half a second every 7 s."""
    samples = 0.2 * torch.randn(seconds * SAMPLE_RATE, generator=torch.Generator().manual_seed(seconds))
    samples[torch.arange(len(samples)) % (7 * SAMPLE_RATE) >= 6.5 * SAMPLE_RATE] *= 0.001
    return samples


def parts(samples: Tensor, size: int, known_s: float = 0.0) -> Iterator[Part]:
    return (Part(part, known_s) for part in samples.split(size))


@pytest.mark.parametrize("size", [SAMPLE_RATE, 1_234_567, 10**7])
def test_sections_join_to_the_recording_however_it_is_decoded(size: int) -> None:
    samples = talk(200)
    found = list(sections_of(parts(samples, size), SECTION_S))
    assert torch.equal(torch.cat([section.samples for section in found]), samples)
    assert [section.start for section in found] == [0, *(section.end for section in found[:-1])]
    assert [section.is_last for section in found] == [False, False, False, True]
    for section in found[:-1]:
        assert 70 - CUT_WITHIN_S <= len(section.samples) / SAMPLE_RATE <= 70
        assert samples[section.end - 160 : section.end + 160].abs().max() < 0.01  # in a pause


def test_a_recording_that_is_no_longer_than_a_section_is_one() -> None:
    (section,) = sections_of(parts(talk(70), SAMPLE_RATE, known_s=69.0), SECTION_S)
    assert (section.start, section.is_last, section.known_s) == (0, True, 70)


def test_what_was_read_before_is_left_out() -> None:
    found = list(sections_of(parts(talk(200), 100_000), SECTION_S))
    again = list(sections_of(parts(talk(200), 777_777), SECTION_S, start=found[1].end))
    assert [section.start for section in again] == [section.start for section in found[2:]]
    assert all(torch.equal(a.samples, b.samples) for a, b in zip(again, found[2:], strict=True))


def test_sections_keep_no_more_of_a_recording_than_they_hold() -> None:
    for section in sections_of(parts(talk(200), 100_000), SECTION_S):
        assert section.samples.untyped_storage().nbytes() <= 4 * 72 * SAMPLE_RATE


def test_silence_has_sections_of_full_length_and_next_to_nothing_is_an_error() -> None:
    found = list(sections_of(parts(torch.zeros(150 * SAMPLE_RATE), 100_000), SECTION_S))
    assert sum(len(section.samples) for section in found) == 150 * SAMPLE_RATE
    with pytest.raises(AudioError, match=r"holds 0\.010 s of audio; there is nothing to transcribe"):
        list(sections_of(parts(torch.zeros(160), 100), SECTION_S))
    with pytest.raises(AudioError, match=r"holds 0\.000 s"):
        list(sections_of([], SECTION_S))


def test_only_speech_is_kept_where_something_finds_it() -> None:
    found = list(sections_of(parts(talk(100), 10**6), SECTION_S, only_speech=torch.zeros_like))
    assert all(not section.samples.any() for section in found)
