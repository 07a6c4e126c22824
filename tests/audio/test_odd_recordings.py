"""All audio of a recording is decoded, or it is rejected for a true reason: `tests/helpers/odd_recordings.py`."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_recordings import (
    KINDS,
    Odd,
    Sound,
    encode,
    mp3,
    mp3_frames,
    ogg,
    outcome,
    sound,
    with_info,
    without_info,
)

from kikitori.audio.formats import AudioError
from kikitori.audio.waveform import SAMPLE_RATE, decode

SOUNDS = [sound(1.3 + 0.2 * seed, seed) for seed in range(4)]


def encoded(form: str) -> list[bytes]:
    if form in ("VORBIS", "OPUS"):
        return [ogg(one, form) for one in SOUNDS]
    if form.startswith("mp3"):
        files = [mp3(one, mode="VARIABLE" if "variable" in form else "CONSTANT") for one in SOUNDS]
        return [without_info(file) for file in files] if "bare" in form else files
    return [encode(one, SAMPLE_RATE, form) for one in SOUNDS]


FAMILIES = [["mp3", "mp3 bare", "mp3 variable", "mp3 variable bare"], ["VORBIS", "OPUS"], ["FLAC"], ["WAV"], ["AIFF"]]
FAMILIES += [["AU"], ["W64"]]
FILES = {form: encoded(form) for family in FAMILIES for form in family}


@pytest.mark.parametrize("kind", KINDS)
def test_each_odd_recording_is_decoded_completely_or_rejected_for_a_true_reason(kind: str) -> None:
    wrong = [f"{odd.name}: {happened}" for odd in KINDS[kind]() for happened, right in [outcome(odd)] if not right]
    assert not wrong


@settings(deadline=None, max_examples=40)
@given(data=st.data(), family=st.sampled_from(FAMILIES))
def test_joined_files_are_decoded_to_the_end(data: st.DataObject, family: list[str]) -> None:
    parts = data.draw(st.lists(st.tuples(st.sampled_from(family), st.integers(0, 3)), min_size=2, max_size=4))
    whole = b"".join(FILES[form][number] for form, number in parts)
    happened, right = outcome(Odd("joined", whole, tuple(SOUNDS[number] for _, number in parts)))
    assert right, happened


def lost_s(data: bytes, truth: Sound) -> float:
    """Returns the seconds that are missing from what is decoded, 0 if the file is rejected."""
    try:
        return (len(truth) - len(decode(data))) / SAMPLE_RATE
    except AudioError:
        return 0.0


@settings(deadline=None, max_examples=150)
@given(data=st.data(), form=st.sampled_from(sorted(FILES)))
def test_a_cut_file_is_rejected_or_lost_less_than_a_tenth_of_a_second(data: st.DataObject, form: str) -> None:
    whole = FILES[form][0]
    at = data.draw(st.integers(0, len(whole)))
    is_end = at in mp3_frames(whole) if "bare" in form else whole.startswith(b"OggS", at)
    if not is_end:  # then the file is complete to whoever does not know it
        assert lost_s(whole[:at], SOUNDS[0]) <= 0.1


@settings(deadline=None, max_examples=150)
@given(form=st.sampled_from(["WAV", "AIFF", "AU", "W64"]), length=st.integers(0, 2**32 - 1) | st.integers(0, 90_000))
def test_no_stated_length_loses_audio(form: str, length: int) -> None:
    whole = FILES[form][0]
    at = {"WAV": 40, "AIFF": 42, "AU": 8, "W64": 96}[form]
    order = ">" if form in ("AIFF", "AU") else "<"
    stated = whole[:at] + struct.pack(f"{order}{'Q' if form == 'W64' else 'I'}", length)
    assert lost_s(stated + whole[len(stated) :], SOUNDS[0]) <= 0.1


@settings(deadline=None, max_examples=40)
@given(frames=st.integers(0, 2**32 - 1) | st.integers(0, 90), padding=st.integers(0, 4095))
def test_no_info_frame_loses_audio(frames: int, padding: int) -> None:
    assert lost_s(with_info(FILES["mp3"][0], frames, padding), SOUNDS[0]) <= 0.15


@settings(deadline=None, max_examples=150, derandomize=True)
@given(form=st.sampled_from([f for f in sorted(FILES) if f[:3] in ("mp3", "VOR", "OPU", "FLA")]), data=st.data())
def test_a_hole_in_a_compressed_file_is_found(form: str, data: st.DataObject) -> None:
    whole = FILES[form][0]
    start = data.draw(st.integers(len(whole) // 4, len(whole) - 1))
    end = min(len(whole), start + data.draw(st.integers(1, 4_000)))
    if form in ("VORBIS", "OPUS"):
        is_seamless = whole.startswith(b"OggS", start) and end == len(whole)
    else:
        is_seamless = "bare" in form and seamless(mp3_frames(whole), start, end, len(whole))
    if not is_seamless:  # then what is left is complete to whoever does not know the file
        # Of a variable bit rate without an index, a hole next to a frame's end is found from three frames on.
        assert lost_s(whole[:start] + whole[end:], SOUNDS[0]) <= 0.15


def seamless(frames: list[int], start: int, end: int, size: int) -> bool:
    """Returns whether frames alone are left: the beginning of one and the end of another have the right length."""
    bounds = [*frames, size]
    first = max(i for i, at in enumerate(bounds) if at <= start)
    if start in bounds:
        return end in bounds
    behind = min(at for at in bounds if at >= end)
    return start - bounds[first] + behind - end == bounds[first + 1] - bounds[first]
