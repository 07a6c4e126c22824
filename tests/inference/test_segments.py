"""Recordings are cut at their pauses."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.inference.segments import SHORTEST_S, halves, split_at_pauses


def speech(*phrases_s: float, pause_s: float = 0.4, noise: float = 0.001) -> Tensor:
    """Returns noise as loud as speech with pauses between phrases."""
    torch.manual_seed(0)
    parts = [part for s in phrases_s for part in (0.2 * torch.randn(round(s * SAMPLE_RATE)), silence(pause_s))]
    return (recording := torch.cat(parts)) + noise * torch.randn(len(recording))


def silence(seconds: float) -> Tensor:
    return torch.zeros(round(seconds * SAMPLE_RATE))


@given(
    samples=st.integers(0, 300_000),
    longest_s=st.sampled_from([0.04, 1.0, 2.5, 30.0]),
    at_long_pauses=st.booleans(),
    seed=st.integers(0, 3),
)
def test_the_pieces_join_to_the_recording_and_are_neither_long_nor_tiny(
    samples: int, longest_s: float, at_long_pauses: bool, seed: int
) -> None:
    recording = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    recording[torch.arange(samples) // (30_000 + 5_000 * seed) % 3 == 0] *= 1e-4
    pieces = split_at_pauses(recording, longest_s, at_long_pauses)
    assert torch.equal(torch.cat([recording[piece] for piece in pieces]), recording)
    lengths_s = [(piece.stop - piece.start) / SAMPLE_RATE for piece in pieces]
    assert max(lengths_s) <= max(longest_s, 0.05)
    if len(pieces) > 1 and not at_long_pauses:
        assert min(lengths_s) >= min(SHORTEST_S, longest_s / 3) - 0.1


def test_every_cut_is_in_a_pause() -> None:
    phrases_s = [2.1, 3.4, 1.2, 2.7, 0.6, 4.4, 3.0]
    recording, at = speech(*phrases_s), 0.0
    pauses = []
    for phrase_s in phrases_s:
        pauses.append((at + phrase_s, at + phrase_s + 0.4))
        at += phrase_s + 0.4
    for longest_s in (5.0, 6.0, 10.0):
        pieces = split_at_pauses(recording, longest_s)
        cuts = [piece.stop / SAMPLE_RATE for piece in pieces[:-1]]
        assert all(any(start < cut < end for start, end in pauses) for cut in cuts), (longest_s, cuts)


def test_a_recording_is_cut_as_seldom_as_its_length_demands() -> None:
    assert len(split_at_pauses(speech(*[1.6] * 12), 6.5)) == 4
    assert len(split_at_pauses(speech(*[1.6] * 3), 6.0)) == 1


def test_a_quieter_pause_wins_over_a_longer_piece() -> None:
    """The shallow pause at 4 s would allow two pieces as well."""
    torch.manual_seed(0)
    recording = 0.2 * torch.randn(6 * SAMPLE_RATE)
    for start_s, level in ((2.0, 0.001), (4.0, 0.05)):
        recording[round(start_s * SAMPLE_RATE) : round((start_s + 0.4) * SAMPLE_RATE)] *= level / 0.2
    first, _ = split_at_pauses(recording, 5.0)
    assert 2.0 < first.stop / SAMPLE_RATE < 2.4


def test_a_piece_is_halved_in_the_pause_of_its_middle_third() -> None:
    recording = speech(1.0, 1.1, 2.0, 0.5)
    first, second = halves(recording, slice(SAMPLE_RATE // 2, len(recording)))
    assert (first.start, first.stop, second.stop) == (SAMPLE_RATE // 2, second.start, len(recording))
    assert 2.5 < first.stop / SAMPLE_RATE < 2.9


def test_a_long_pause_ends_a_piece_if_asked() -> None:
    recording = torch.cat([speech(1.5, pause_s=1.4), speech(1.5, pause_s=0.5), speech(1.5, pause_s=1.4), silence(0.1)])
    assert len(split_at_pauses(recording, 30.0)) == 1
    first, second, _ = split_at_pauses(recording, 30.0, at_long_pauses=True)
    assert 1.5 < first.stop / SAMPLE_RATE < 2.9
    assert 6.4 < second.stop / SAMPLE_RATE < 7.8
    # A long recording is cut in its sections, too.
    pieces = split_at_pauses(recording.repeat(4), 2.0, at_long_pauses=True)
    assert all(piece.stop - piece.start <= 2.0 * SAMPLE_RATE for piece in pieces)
    assert pieces[-1].stop == 4 * len(recording)
