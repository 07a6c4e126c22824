import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.model.features import log_mel
from kikitori.model.window import FULL, Window, describe_window, make_window, window_from_plain

WINDOW = Window((2.0, 3.0, 5.5, 40.0), 0.5)


@pytest.mark.parametrize(
    ("seconds", "frames"),
    [(0.1, 200), (1.5, 200), (1.51, 300), (2.5, 300), (2.6, 550), (5.0, 550), (5.1, 3000), (29.0, 3000), (45.0, 3000)],
)
def test_a_clip_is_padded_to_the_first_length_that_holds_it_and_the_margin(seconds: float, frames: int) -> None:
    assert WINDOW.frames(round(seconds * SAMPLE_RATE), 3000) == frames


@given(st.integers(0, 1_000_000))
def test_the_full_policy_always_gives_the_full_window(samples: int) -> None:
    assert FULL.frames(samples, 3000) == 3000


@given(samples=st.integers(0, 600_000), edges=st.sets(st.floats(0.1, 35), max_size=5), margin=st.floats(0, 5))
def test_windows_are_even_and_never_longer_than_the_models(samples: int, edges: set[float], margin: float) -> None:
    frames = Window(tuple(sorted(edges)), margin).frames(samples, 3000)
    assert frames % 2 == 0
    assert frames <= 3000


def test_windows_survive_being_saved() -> None:
    assert window_from_plain(WINDOW.as_plain()) == WINDOW
    assert window_from_plain(None) == make_window("full", [1.0], 1.0) == FULL
    assert make_window("bucketed", [1.0, 2.0], 0.2) == Window((1.0, 2.0), 0.2)


def test_windows_are_described_in_words() -> None:
    assert describe_window(FULL) == "the full window"
    assert describe_window(WINDOW).startswith("the first of 2, 3, 5.5, 40 s that holds the clip and 0.5 s of silence")


@given(samples=st.integers(100, 80_000), mels=st.sampled_from([80, 128]), seed=st.integers(0, 99))
def test_a_shorter_window_has_the_same_first_frames_as_the_full_one_bit_for_bit(
    samples: int, mels: int, seed: int
) -> None:
    waveform = 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    frames = Window((1.0, 2.0, 4.0, 6.0), 0.1).frames(samples, 3000)
    assert torch.equal(log_mel(waveform, mels, frames), log_mel(waveform, mels, 3000)[:, :frames])


def test_a_piece_of_a_recording_fits_into_the_longest_window() -> None:
    assert WINDOW.longest_s(30.0) == 39.5
    assert Window((5.0, 20.0), 1.0).longest_s(30.0) == 19.0
    assert FULL.longest_s(30.0) == 30.0
