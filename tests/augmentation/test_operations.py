"""What each change does to a waveform, in numbers: levels, spectra, lengths and alignment."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.augmentation import operations
from kikitori.augmentation.settings import MP3_KBPS

WINDOW = 30 * SAMPLE_RATE


def speech_like(seconds: float = 3.0, seed: int = 0) -> Tensor:
    """Noise that fades in and out three times per second, with more power at low frequencies; its peak is 0.5."""
    samples, rng = round(seconds * SAMPLE_RATE), np.random.default_rng(seed)
    waveform = operations.pink_noise(samples, rng) * torch.sin(torch.arange(samples) * 3 * np.pi / SAMPLE_RATE)
    return waveform / (2 * waveform.abs().max())


def energy_db(waveform: Tensor) -> float:
    return 10 * float(waveform.double().square().sum().log10())


def lag(waveform: Tensor, reference: Tensor) -> int:
    """By how many samples a waveform is behind a reference of the same length."""
    size = 2 * len(reference)
    spectra = [np.fft.rfft(signal.numpy(), size) for signal in (waveform, reference)]
    place = int(np.argmax(np.fft.irfft(spectra[0] * np.conj(spectra[1]), size)))
    return place - size if place > size // 2 else place


@pytest.mark.parametrize("factor", [0.85, 0.9, 0.97, 1.0, 1.05, 1.15, 2.0])
def test_speed_divides_the_duration_and_multiplies_the_pitch(factor: float) -> None:
    tone = torch.sin(2 * np.pi * 500 * torch.arange(48_000) / SAMPLE_RATE)
    changed = operations.change_speed(tone, factor, WINDOW)
    assert abs(len(changed) - 48_000 / factor) < 1
    hertz = np.argmax(np.abs(np.fft.rfft(changed.numpy()))) * SAMPLE_RATE / len(changed)
    assert hertz == pytest.approx(500 * factor, abs=0.5)


@pytest.mark.parametrize(("most", "samples"), [(40_000, 40_000), (36_500, 36_364), (32_000, 32_000), (30_000, 32_000)])
def test_a_clip_that_would_exceed_the_window_is_slowed_less_or_not_at_all(most: int, samples: int) -> None:
    """36,364 samples are 0.88 times as fast; at 0.87 times they would be too many."""
    assert len(operations.change_speed(speech_like(2), 0.8, most)) == samples
    assert len(operations.change_speed(speech_like(2), 1.25, most)) == 25_600


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 7.3, 20.0, 40.0])
@pytest.mark.parametrize("kind", [operations.white_noise, operations.pink_noise])
def test_noise_has_the_ratio_to_the_clip_that_was_asked_for(snr_db: float, kind: object) -> None:
    clip = speech_like()
    noise = kind(len(clip), np.random.default_rng(1))  # type: ignore[operator]
    noisy = operations.add_noise(clip, noise, snr_db)
    assert energy_db(clip) - energy_db(noisy - clip) == pytest.approx(snr_db, abs=0.1)


def test_a_silent_clip_and_silent_noise_change_nothing() -> None:
    clip, silence = speech_like(), torch.zeros(48_000)
    assert torch.equal(operations.add_noise(silence, clip, 10.0), silence)
    for quiet in (silence, torch.full((48_000,), 1 / 32_768)):
        assert torch.equal(operations.add_noise(clip, quiet, 10.0), clip)


@pytest.mark.parametrize(("kind", "per_octave_db"), [(operations.white_noise, 0.0), (operations.pink_noise, -3.01)])
def test_the_power_of_noise_per_octave(kind: object, per_octave_db: float) -> None:
    noise = kind(2**18, np.random.default_rng(0))  # type: ignore[operator]
    power = np.abs(np.fft.rfft(noise.numpy())) ** 2
    bands = [10 * np.log10(power[2**n : 2 ** (n + 1)].mean()) for n in range(10, 17)]
    assert np.diff(bands) == pytest.approx(per_octave_db, abs=0.5)


def test_a_part_of_a_recording_is_contiguous_and_a_short_one_is_repeated_from_any_place() -> None:
    recording = np.arange(10, dtype=np.int16)
    parts = {tuple((operations.stretch_of(recording, 7, place) * 32_768).int().tolist()) for place in (0.0, 0.5, 0.999)}
    assert parts == {tuple(range(n, n + 7)) for n in (0, 2, 3)}
    repeated = operations.stretch_of(recording, 25, 0.55) * 32_768
    assert repeated.int().tolist() == [(5 + n) % 10 for n in range(25)]


def test_a_room_keeps_the_direct_sound_in_its_place_and_the_energy() -> None:
    clip, rng = speech_like(), np.random.default_rng(2)
    tail = rng.standard_normal(8_000) * np.exp(-np.arange(8_000) / 1_500) * 0.3
    response = torch.from_numpy(np.concatenate([tail[:700] / 30, [1.0], tail]).astype(np.float32))
    wet = operations.reverberate(clip, response)
    assert len(wet) == len(clip)
    assert energy_db(wet) == pytest.approx(energy_db(clip), abs=0.01)
    assert not torch.allclose(wet, clip, atol=0.01)
    click = torch.zeros(20_000)
    click[9_000] = 0.5
    assert int(operations.reverberate(click, response).argmax()) == 9_000
    assert torch.allclose(operations.reverberate(clip, torch.tensor([0.0, 0.0, 0.3])), clip, atol=1e-5)


def test_a_clip_that_a_room_silences_is_kept() -> None:
    silence = torch.zeros(1_000)
    assert torch.equal(operations.reverberate(silence, torch.tensor([1.0, 0.5])), silence)


def test_gain_is_in_decibels() -> None:
    clip = speech_like()
    assert energy_db(operations.change_gain(clip, -7.5)) == pytest.approx(energy_db(clip) - 7.5, abs=0.01)


@pytest.mark.parametrize("with_mu_law", [False, True])
def test_a_telephone_passes_300_to_3400_hz_and_40_db_less_of_the_rest(with_mu_law: bool) -> None:
    noise = operations.white_noise(2**17, np.random.default_rng(0)) / 8
    received = operations.telephone(noise, with_mu_law)
    assert len(received) == len(noise)
    assert lag(received, noise) == 0
    window = np.hanning(len(noise))
    sent, got = (np.abs(np.fft.rfft(signal.numpy() * window)) ** 2 for signal in (noise, received))
    hertz = np.fft.rfftfreq(len(noise), 1 / SAMPLE_RATE)
    inside, below, above = (hertz > 330) & (hertz < 3370), hertz < 270, hertz > (4_100 if with_mu_law else 3_430)

    def gain_db(band: np.ndarray) -> float:
        return float(10 * np.log10(got[band].sum() / sent[band].sum()))

    assert gain_db(inside) == pytest.approx(0, abs=0.2)
    assert gain_db(above) < -40
    assert gain_db(below) < (-30 if with_mu_law else -40)  # 8-bit samples have noise of their own


def test_mu_law_keeps_length_and_place_and_has_256_levels() -> None:
    clip = speech_like()
    coded = operations.mu_law(clip)
    assert len(coded.unique()) <= 256
    assert lag(coded, clip) == 0
    assert 20 < energy_db(clip) - energy_db(coded - clip) < 45


@pytest.mark.parametrize("kbps", MP3_KBPS)
def test_mp3_keeps_length_and_place(kbps: int) -> None:
    clip = speech_like(1.3)
    coded = operations.mp3(clip, kbps)
    assert coded.shape == clip.shape
    assert lag(coded, clip) == 0
    assert energy_db(clip) - energy_db(coded - clip) > 8


def test_more_bits_of_mp3_are_closer_to_the_clip() -> None:
    clip = speech_like(2)
    errors = [energy_db(operations.mp3(clip, kbps) - clip) for kbps in (16, 32, 64, 160)]
    assert errors == sorted(errors, reverse=True)


def test_a_clip_that_is_too_loud_is_scaled_and_not_clipped() -> None:
    clip = speech_like()
    loud = operations.fit_full_scale(clip * 5)
    assert float(loud.abs().max()) == 1
    assert torch.allclose(loud, clip * 2, atol=1e-6)
    assert torch.equal(operations.fit_full_scale(clip), clip)


@settings(max_examples=25)
@given(samples=st.integers(1, 3_000), seed=st.integers(0, 99), kbps=st.sampled_from(MP3_KBPS))
def test_clips_of_any_length_keep_it(samples: int, seed: int, kbps: int) -> None:
    clip = torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, samples).astype(np.float32))
    for changed in (
        operations.reverberate(clip, torch.tensor([0.1, 1.0, 0.5])),
        operations.add_noise(clip, operations.pink_noise(samples, np.random.default_rng(seed)), 5.0),
        operations.telephone(clip, with_mu_law=True),
        operations.mu_law(clip),
        operations.mp3(clip, kbps),
    ):
        assert changed.shape == clip.shape
        assert bool(changed.isfinite().all())
