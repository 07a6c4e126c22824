"""Which changes a clip gets: by seed, step and name alone, in range, and never longer than the window."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.augmentation import operations
from kikitori.augmentation.augmenter import Augmenter, generator
from kikitori.augmentation.settings import Augmentation, setting_faults
from kikitori.runtime.errors import ConfigError

WINDOW = SAMPLE_RATE
ALWAYS = {key: 1.0 for key in Augmentation.__dataclass_fields__ if key.endswith("_prob") and key != "room_prob"}


def recordings(*lengths: int, amplitude: float = 8_000) -> list[NDArray[np.int16]]:
    rng = np.random.default_rng(0)
    return [(amplitude * rng.uniform(-1, 1, length)).astype(np.int16) for length in lengths]


def augmenter(seed: int = 0, voices: int = 4, **chosen: Any) -> Augmenter:
    sounds = {"noises": recordings(300, 20_000), "rooms": recordings(200, 2_000)}
    return Augmenter(Augmentation(**chosen), seed, recordings(*[9_000] * voices), **sounds)


def clip(samples: int = 8_000) -> Tensor:
    return torch.from_numpy(np.random.default_rng(5).uniform(-0.5, 0.5, samples).astype(np.float32))


def test_a_clip_depends_on_seed_step_and_name_and_on_nothing_else() -> None:
    change, other = augmenter(**ALWAYS), augmenter(seed=1, **ALWAYS)
    first = change(clip(), 3, "a.mp3", 0, WINDOW)
    torch.manual_seed(7)
    change(clip(), 4, "b.mp3", 1, WINDOW)
    assert torch.equal(augmenter(**ALWAYS)(clip(), 3, "a.mp3", 0, WINDOW), first)
    others = [change(clip(), 4, "a.mp3", 0, WINDOW), change(clip(), 3, "b.mp3", 0, WINDOW)]
    others.append(other(clip(), 3, "a.mp3", 0, WINDOW))
    assert not any(torch.equal(first, changed) for changed in others)


def test_it_changes_no_random_state_and_not_the_clip_itself() -> None:
    before, given_clip, numpy_state = torch.get_rng_state(), clip(), np.random.get_state()[1].copy()
    augmenter(**ALWAYS)(given_clip, 0, "a.mp3", 0, WINDOW)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert torch.equal(given_clip, clip())


@pytest.mark.parametrize("threads", [2, 4])
def test_the_number_of_threads_changes_no_bit_and_stays_as_it_was(threads: int) -> None:
    """A loader worker has one, the main process as many as there are cores. A long clip, whose sums are divided."""
    change, long = augmenter(**ALWAYS), clip(5 * SAMPLE_RATE)
    before, results = torch.get_num_threads(), []
    try:
        for number in (1, threads):
            torch.set_num_threads(number)
            results.append(change(long, 0, "a.mp3", 0, 30 * SAMPLE_RATE))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_one_change_does_not_alter_what_the_others_draw() -> None:
    """So runs with and without noise differ in noise alone."""
    plain = augmenter(speed_prob=0.5, gain_prob=0.5)
    noisy = augmenter(speed_prob=0.5, gain_prob=0.5, noise_prob=1.0, snr_db=(100, 100))
    for step in range(20):
        one, two = (change(clip(), step, "a.mp3", 0, WINDOW) for change in (plain, noisy))
        assert torch.allclose(one, two, atol=1e-4)


@pytest.mark.parametrize("key", ["speed_prob", "noise_prob", "gain_prob", "telephone_prob", "mu_law_prob", "mp3_prob"])
def test_a_change_has_its_probability(key: str) -> None:
    change, original = augmenter(**{key: 0.3}), clip(800)
    changed = [not torch.equal(change(original, step, "a.mp3", 0, WINDOW), original) for step in range(400)]
    assert 0.2 < np.mean(changed) < 0.4
    never = augmenter()
    assert all(torch.equal(never(original, step, "a.mp3", 0, WINDOW), original) for step in range(20))


@pytest.mark.parametrize("kind", ["white", "pink", "babble", "folder"])
def test_noise_of_each_kind_has_the_ratio_that_was_drawn(kind: str, tmp_path: Path) -> None:
    folder = {"noise_kinds": (), "noise_folder": str(tmp_path)} if kind == "folder" else {"noise_kinds": (kind,)}
    change, original = augmenter(noise_prob=1.0, snr_db=(5, 25), **folder), clip() / 4
    ratios = []
    for step in range(20):
        noise = change(original, step, "a.mp3", 0, WINDOW) - original
        ratios.append(float(10 * (original.square().sum() / noise.square().sum()).log10()))
        _, _, drawn, *_ = generator(0, step, "a.mp3").spawn(7)
        drawn.random()
        assert ratios[-1] == pytest.approx(drawn.uniform(5, 25), abs=0.1)
    assert max(ratios) - min(ratios) > 10


def test_babble_is_made_of_other_clips_than_the_one_it_covers() -> None:
    silent_but_one = [np.zeros(9_000, np.int16)] * 2 + recordings(9_000)
    change = Augmenter(Augmentation(noise_prob=1.0, noise_kinds=["babble"]), 0, silent_but_one)
    assert all(torch.equal(change(clip(), step, "c.mp3", 2, WINDOW), clip()) for step in range(20))
    assert not torch.equal(change(clip(), 0, "a.mp3", 0, WINDOW), clip())


def test_babble_needs_a_second_clip() -> None:
    with pytest.raises(ConfigError, match=r"babble is made of other .*; pass augment.noise_kinds=\[white,pink\]"):
        augmenter(noise_prob=0.1, voices=1)
    with pytest.raises(ConfigError, match=r"babble is made of other .*; pass augment.noise_prob=0"):
        augmenter(noise_prob=0.1, voices=1, noise_kinds=["babble"])
    assert augmenter(noise_prob=0.1, voices=1, noise_kinds=["white"])


def test_all_kinds_and_recordings_and_bit_rates_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(operations, "mp3", lambda waveform, kbps: drawn.append(kbps) or waveform)
    monkeypatch.setattr(operations, "stretch_of", lambda found, n, _: drawn.append(len(found)) or torch.ones(n))
    monkeypatch.setattr(operations, "reverberate", lambda waveform, room: drawn.append(len(room)) or waveform)
    folders = {"noise_folder": str(tmp_path), "room_folder": str(tmp_path)}
    change = augmenter(noise_prob=1.0, room_prob=1.0, mp3_prob=1.0, mp3_kbps=(20, 60), **folders)
    for step in range(100):
        change(clip(100), step, "a.mp3", 0, WINDOW)
    assert set(drawn) == {24, 32, 40, 48, 56} | {300, 20_000} | {200, 2_000} | {9_000}


PROBABILITY = st.floats(0, 1)


@settings(max_examples=30)
@given(
    samples=st.integers(1, WINDOW),
    amplitude=st.sampled_from([0.0, 1 / 32_768, 0.01, 1.0]),
    step=st.integers(0, 10**9),
    name=st.text(),
    chosen=st.fixed_dictionaries(
        dict.fromkeys(ALWAYS, PROBABILITY)
        | {
            "speed": st.tuples(st.floats(0.5, 1), st.floats(1, 2)),
            "snr_db": st.tuples(st.floats(-60, 0), st.floats(0, 100)),
            "gain_db": st.tuples(st.floats(-60, 0), st.floats(0, 60)),
            "noise_kinds": st.lists(st.sampled_from(["white", "pink", "babble"]), min_size=1),
        }
    ),
)
@example(1, 1.0, 0, "", {**ALWAYS, "gain_db": (60, 60), "snr_db": (-60, -60)})
@example(WINDOW, 0.0, 0, "a", {**ALWAYS, "speed": (0.5, 0.5)})
def test_a_changed_clip_is_finite_within_full_scale_and_fits_the_window(
    samples: int, amplitude: float, step: int, name: str, chosen: dict[str, Any]
) -> None:
    original = amplitude * (clip(samples) * 2)
    changed = augmenter(**chosen)(original, step, name, 0, WINDOW)
    assert changed.dtype == torch.float32
    assert bool(changed.isfinite().all())
    assert float(changed.abs().max()) <= 1
    assert 1 <= len(changed) <= WINDOW


def test_a_clip_that_is_longer_than_the_window_is_not_made_longer() -> None:
    slow = augmenter(speed_prob=1.0, speed=(0.5, 0.5))
    assert len(slow(clip(WINDOW + 100), 0, "a.mp3", 0, WINDOW)) == WINDOW + 100


@pytest.mark.parametrize(
    ("chosen", "fault"),
    [
        ({"noise_prob": 1.2}, "noise_prob: must be a probability between 0 and 1, got 1.2"),
        ({"mp3_prob": -0.1}, "mp3_prob: must be a probability between 0 and 1, got -0.1"),
        ({"gain_prob": float("nan")}, "gain_prob: must be a probability between 0 and 1, got nan"),
        ({"speed_prob": True}, "speed_prob: must be a probability between 0 and 1, got True"),
        ({"snr_db": "loud"}, "snr_db: must be two numbers, a lower and an upper one, such as [10, 30], got 'loud'"),
        ({"snr_db": ["5", "10"]}, "snr_db: must be two numbers"),
        ({"snr_db": 10}, "snr_db: must be two numbers"),
        ({"snr_db": [0, 10, 20]}, "snr_db: must be two numbers"),
        ({"gain_db": [0, float("inf")]}, "gain_db: must be two numbers"),
        ({"snr_db": [30, 10]}, "snr_db: must have the lower number first: [10,30], got [30, 10]"),
        ({"speed": [0, 1.1]}, "speed: must be within 0.5 and 2, got [0, 1.1]"),
        ({"gain_db": [-6, 200]}, "gain_db: must be within -60 and 60, got [-6, 200]"),
        ({"mp3_kbps": [8, 32]}, "mp3_kbps: must be within 16 and 160, got [8, 32]"),
        ({"mp3_kbps": [17, 20]}, "mp3_kbps: holds none of the bit rates that there are: 16, 24,"),
        ({"noise_kinds": ["brown"]}, "noise_kinds: must be a list of some of white, pink, babble, got ['brown']"),
        ({"noise_kinds": "white"}, "noise_kinds: must be a list of some of white, pink, babble, got 'white'"),
        ({"noise_prob": 0.5, "noise_kinds": []}, "noise_kinds: is empty, and there is no augment.noise_folder"),
        ({"noise_prob": 0.5, "noise_folder": "/no/such"}, "noise_folder: /no/such is not a folder; give one with"),
        ({"noise_prob": 0.5, "noise_folder": "~nobody-here/x"}, "noise_folder: ~nobody-here/x is not a folder"),
        ({"noise_prob": 0.5, "noise_folder": ""}, "noise_folder: '' is not a folder; give one with recordings"),
        ({"noise_folder": "."}, "noise_folder: has no effect while augment.noise_prob is 0; set it, as in"),
        ({"room_folder": "."}, "room_folder: has no effect while augment.room_prob is 0"),
        ({"room_prob": 1.1}, "room_prob: must be a probability between 0 and 1, got 1.1"),
        ({"room_prob": "often"}, "room_prob: must be a probability between 0 and 1, got 'often'"),
        ({"room_prob": 0.5}, "room_prob: needs a folder of impulse responses: augment.room_folder=..."),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_the_remedy(chosen: dict[str, Any], fault: str) -> None:
    faults = [f"{key}: {found}" for key, found in setting_faults(chosen)]
    assert len(faults) == 1
    assert faults[0].startswith(fault)
    with pytest.raises(ConfigError, match="1 problem in the configuration\n  augment"):
        Augmentation(**chosen)


def test_settings_without_a_probability_change_nothing() -> None:
    off = Augmentation()
    assert not off.is_on
    assert replace(off, mp3_prob=0.1).is_on
    assert not list(setting_faults({}))
