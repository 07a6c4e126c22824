import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor

from kikitori.audio.waveform import SAMPLE_RATE, to_float, to_int16
from kikitori.model.features import log_mel

EXTRACTORS = {mels: WhisperFeatureExtractor(feature_size=mels) for mels in (80, 128)}


def noise(seconds: float, amplitude: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (amplitude * torch.randn(round(seconds * SAMPLE_RATE), generator=generator)).clamp(-1, 1)


@pytest.mark.parametrize("mels", [80, 128])
@pytest.mark.parametrize("seconds", [0.3, 0.999, 1.0, 2.345, 5.0, 11.7, 20.0, 29.9, 29.99, 30.0, 31.0])
@pytest.mark.parametrize("amplitude", [0.3, 1e-6])
def test_log_mel_is_bit_equal_to_the_reference_extractor(mels: int, seconds: float, amplitude: float) -> None:
    waveform = noise(seconds, amplitude)
    expected = EXTRACTORS[mels](waveform.numpy(), sampling_rate=SAMPLE_RATE).input_features[0]
    assert torch.equal(log_mel(waveform, mels, 3000), torch.from_numpy(expected))


@pytest.mark.parametrize("seconds", [0.3, 1.5, 2.99, 3.0, 4.0])
def test_log_mel_of_a_short_window_equals_the_reference_extractor_of_that_window(seconds: float) -> None:
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=3)
    waveform = noise(seconds, 0.1)
    expected = extractor(waveform.numpy(), sampling_rate=SAMPLE_RATE).input_features[0]
    assert torch.equal(log_mel(waveform, 80, 300), torch.from_numpy(expected))


@pytest.mark.parametrize("mels", [80, 128])
def test_log_mel_of_digital_silence_equals_the_reference(mels: int) -> None:
    waveform = torch.zeros(SAMPLE_RATE)
    expected = EXTRACTORS[mels](waveform.numpy(), sampling_rate=SAMPLE_RATE).input_features[0]
    assert torch.equal(log_mel(waveform, mels, 3000), torch.from_numpy(expected))


@settings(deadline=None, max_examples=25)
@given(samples=st.integers(4800, 478_400), level=st.floats(-60, 0), seed=st.integers(0, 99))
def test_log_mel_equals_the_reference_at_any_length_and_level(samples: int, level: float, seed: int) -> None:
    waveform = noise(samples / SAMPLE_RATE, 10 ** (level / 20), seed)
    expected = EXTRACTORS[80](waveform.numpy(), sampling_rate=SAMPLE_RATE).input_features[0]
    assert torch.equal(log_mel(waveform, 80, 3000), torch.from_numpy(expected))


@given(st.lists(st.integers(-32768, 32767), max_size=200))
def test_int16_survives_conversion_to_float_and_back(values: list[int]) -> None:
    pcm = np.array(values, dtype=np.int16)
    assert np.array_equal(to_int16(to_float(pcm)), pcm)


def test_full_scale_does_not_wrap_around() -> None:
    assert to_int16(torch.tensor([1.0, -1.0])).tolist() == [32767, -32768]
