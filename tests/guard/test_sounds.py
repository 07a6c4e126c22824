"""Sounds without speech, and speech through other lines."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.guard import sounds


def level_db(samples: torch.Tensor) -> float:
    return float(10 * samples.double().square().mean().log10())


@pytest.mark.parametrize("make", [sounds.white_noise, sounds.pink_noise, sounds.tone])
@pytest.mark.parametrize("seed", range(4))
def test_a_sound_has_its_level_and_depends_on_its_seed_alone(make: sounds.Maker, seed: int) -> None:
    samples = make(2.0, seed)
    assert samples.dtype == torch.float32
    assert len(samples) == 2 * SAMPLE_RATE
    assert level_db(samples) == pytest.approx(sounds.LEVELS_DB[seed], abs=0.05)
    assert torch.equal(samples, make(2.0, seed))
    assert not torch.equal(samples, make(2.0, seed + 1))


def test_silence_is_digital_silence_or_one_step_of_16_bits() -> None:
    assert not sounds.silence(1, 0).any()
    assert float(sounds.silence(1, 1).abs().max()) == 1 / 32768


def test_pink_noise_falls_by_3_db_an_octave() -> None:
    power = torch.fft.rfft(sounds.pink_noise(60, 3).double()).abs().square()
    octaves = [10 * np.log10(power[60 * low : 120 * low].mean()) for low in (125, 250, 500, 1000, 2000)]
    assert np.diff(octaves) == pytest.approx([-3.01] * 4, abs=0.25)


def test_a_telephone_leaves_nothing_above_4_khz() -> None:
    white = sounds.white_noise(2, 3)
    power = torch.fft.rfft(sounds.through_telephone(white).double()).abs().square()
    assert len(sounds.through_telephone(white)) == len(white)
    below, above = power[2 * 300 : 2 * 3400].mean(), power[2 * 4400 :].mean()
    assert 10 * torch.log10(above / below) < -40


@given(st.integers(100, 20_000), st.integers(0, 50), st.floats(0.01, 1))
def test_noise_has_the_signal_to_noise_ratio(length: int, seed: int, peak: float) -> None:
    speech = peak * torch.sin(torch.arange(length) / 7)
    noisy = sounds.with_noise(speech, 10, seed)
    scale = max(1.0, float(sounds.with_noise(speech / 8, 10, seed).abs().max()) * 8 / sounds.PEAK)
    noise = noisy * scale - speech
    assert level_db(speech) - level_db(noise) == pytest.approx(10, abs=0.05)
    assert float(noisy.abs().max()) <= sounds.PEAK + 1e-6


def test_silence_with_noise_stays_silence() -> None:
    assert not sounds.with_noise(torch.zeros(100), 10, 0).any()


def test_joints_are_in_the_middle_of_the_pauses() -> None:
    samples, joints = sounds.joined([torch.ones(16_000), torch.ones(8_000), torch.ones(16_000)], 0.5)
    assert len(samples) == 56_000
    assert joints == [1.25, 2.25]
    assert not samples[16_000:24_000].any()
