import io
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import FORMATS, encoded, tone

from kikitori.audio import waveform as waveform_module
from kikitori.audio.decoder_process import Block, blocks
from kikitori.audio.formats import AudioError
from kikitori.audio.waveform import SAMPLE_RATE, decode, pcm, to_full_scale, to_int16

OPUS_RATES = {8_000, 12_000, 16_000, 24_000, 48_000}
RATES = [8_000, 16_000, 22_050, 44_100, 48_000]
CASES = [(form, rate) for form in FORMATS for rate in RATES if form != "opus" or rate in OPUS_RATES]
NOISE = np.random.default_rng(0).standard_normal(8_000) * 0.1


def rejection(data: bytes) -> str:
    with pytest.raises(AudioError) as error:
        decode(data)
    return str(error.value)


@pytest.mark.parametrize(("form", "rate"), CASES)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_rate_and_channel_count_gives_the_same_waveform(form: str, rate: int, channels: int) -> None:
    seconds = 0.7
    waveform = decode(encoded(np.stack([tone(seconds, rate=rate)] * channels, axis=1), form, rate))
    assert (waveform.dtype, waveform.ndim) == (torch.float32, 1)
    assert abs(len(waveform) / SAMPLE_RATE - seconds) <= 0.002
    # The tone of 300 Hz is unchanged: no echo, shift, change of speed or of loudness.
    expected = torch.from_numpy(0.3 * np.sin(2 * np.pi * 300 * np.arange(len(waveform)) / SAMPLE_RATE)).float()
    middle = slice(1600, -1600)
    assert (waveform - expected)[middle].abs().mean() < 0.02


def test_channels_are_averaged() -> None:
    left, right = tone(hertz=300), tone(hertz=500)
    stereo = decode(encoded(np.stack([left, right], axis=1), "float.wav"))
    assert torch.allclose(stereo, torch.from_numpy((left + right) / 2).float(), atol=1e-6)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("amplitude", [1.05, 3.0, 90.0])
def test_a_float_wav_beyond_full_scale_is_scaled_and_not_clipped(rate: int, amplitude: float) -> None:
    waveform = decode(encoded(tone(rate=rate, amplitude=amplitude), "float.wav", rate))
    expected = decode(encoded(tone(rate=rate, amplitude=0.5), "float.wav", rate))
    assert waveform.abs().max() == pytest.approx(1, abs=0.05)
    assert torch.allclose(waveform / waveform.abs().max(), expected / expected.abs().max(), atol=1e-5)


def test_an_mp3_that_overshoots_full_scale_is_clamped() -> None:
    square = np.sign(tone(hertz=700))
    with soundfile.SoundFile(io.BytesIO(encoded(square, "mp3"))) as file:
        exact = torch.from_numpy(file.read(dtype="float32"))
    assert exact.abs().max() > 1.05
    assert torch.equal(decode(encoded(square, "mp3")), exact.clamp(-1, 1))


def test_samples_of_an_array_are_brought_to_full_scale() -> None:
    samples = torch.tensor([0.5, -2.0, 1.0])
    assert to_full_scale(samples).tolist() == [0.25, -1.0, 0.5]
    assert torch.equal(to_full_scale(samples / 4), samples / 4)
    assert len(to_full_scale(torch.empty(0))) == 0
    for bad in (float("nan"), float("inf"), 20_000.0):
        with pytest.raises(AudioError, match="divide 16-bit samples by 32768"):
            to_full_scale(torch.tensor([0.1, bad]))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), samples=st.integers(1, 5_000))
def test_16_bit_audio_at_16_khz_is_kept_bit_for_bit(seed: int, samples: int) -> None:
    pcm = np.random.default_rng(seed).integers(-32_768, 32_768, samples).astype(np.int16)
    for form in ("wav", "flac"):
        assert np.array_equal(to_int16(decode(encoded(pcm, form))), pcm)


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_truncated_anywhere_is_rejected_unless_it_lost_less_than_a_tenth_of_a_second(form: str) -> None:
    data = encoded(tone(1.0), form)
    cuts = {*np.linspace(1, len(data) - 1, 120).astype(int), *range(len(data) - 30, len(data))}
    cuts |= {i for i in range(1, len(data) - 1) if data[i : i + 2] == data[:2]}  # where an mp3 frame begins
    assert len(cuts) > 100
    pages = {data.find(b"OggS", cut) for cut in cuts}
    rejected = 0
    for cut in cuts - pages:  # between two pages an ogg is complete, like a broadcast that was recorded until then
        try:
            assert len(decode(data[:cut])) >= 0.9 * SAMPLE_RATE
        except AudioError:
            rejected += 1
    assert rejected >= 0.7 * len(cuts)


def test_a_wav_from_a_pipe_is_complete_although_it_has_no_length() -> None:
    data = bytearray(encoded(tone(), "wav"))
    data[40:44] = data[4:8] = b"\xff\xff\xff\xff"
    assert len(decode(bytes(data))) == 8_000


def test_chunks_before_and_after_the_samples_of_a_wav_are_ignored() -> None:
    data = encoded(tone(), "wav")
    chunk = b"note\x03\x00\x00\x00abc\x00"
    size = (len(data) + 2 * len(chunk) - 8).to_bytes(4, "little")
    around = data[:4] + size + data[8:36] + chunk + data[36:] + chunk
    assert torch.equal(decode(around), decode(data))


def test_tags_around_an_mp3_are_ignored() -> None:
    data = encoded(tone(), "mp3")
    tag = b"ID3\x04\x00\x00\x00\x00\x02\x01" + bytes(257)
    assert torch.equal(decode(tag + data + b"TAG" + bytes(125)), decode(data))
    assert "cut short" in rejection((tag + data)[:-500])


def test_an_mp3_without_a_number_of_frames_is_complete_if_it_ends_with_a_frame() -> None:
    data = encoded(tone(), "mp3")
    frames = [i for i in range(len(data) - 1) if data[i : i + 2] == data[:2]]
    undeclared = data[frames[1] :]
    assert "cut short" in rejection(data[: frames[-5]])
    assert len(decode(undeclared[: frames[-1] - frames[1]]))
    assert "cut short" in rejection(undeclared[: frames[-1] - frames[1] - 1])


def test_an_mp3_whose_tag_is_longer_than_the_file_is_truncated() -> None:
    assert "cut short" in rejection(b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + encoded(tone(), "mp3"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -20_000.0])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_values_that_are_no_audio_are_rejected(value: float, rate: int) -> None:
    samples = tone(rate=rate)
    samples[1000] = value
    assert "not finite" in rejection(encoded(samples, "float.wav", rate))


@pytest.mark.parametrize("rate", [1, 1_000, 44_101, 999_983])
def test_a_rate_that_would_fill_the_memory_is_rejected(rate: int) -> None:
    assert f"sampling rate of {rate} Hz; resample it" in rejection(encoded(NOISE, "wav", rate))


@pytest.mark.parametrize("rate", [11_025, 12_000, 24_000, 32_000, 88_200, 96_000, 192_000])
def test_every_common_rate_is_resampled(rate: int) -> None:
    assert len(decode(encoded(NOISE, "wav", rate))) == -(-8_000 * SAMPLE_RATE // rate)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_wav_without_samples_decodes_to_none(rate: int) -> None:
    assert len(decode(encoded(NOISE[:0], "wav", rate))) == 0


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"ID3", b"ID3\x04\x00\x00\x7f", b"RIFF", b"OggS", b"fLaC", b"<html>log in</html>", bytes(999)],
)
def test_bytes_that_are_no_audio_are_rejected(data: bytes) -> None:
    assert rejection(data)


@settings(deadline=None, max_examples=200)
@given(form=st.sampled_from(sorted(FORMATS)), place=st.integers(0, 300), byte=st.integers(0, 255))
def test_a_damaged_byte_is_decoded_or_rejected_and_raises_no_other_error(form: str, place: int, byte: int) -> None:
    data = bytearray(encoded(NOISE[:4_000], form))
    data[place] = byte
    try:
        waveform = decode(bytes(data))
    except AudioError:
        return
    assert all(waveform.abs() <= 1)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize("amplitude", [0.3, 1.5])
def test_blocks_joined_as_int16_are_those_of_the_waveform(form: str, rate: int, amplitude: float) -> None:
    data = encoded(tone(4, rate=rate, amplitude=amplitude), form, rate)
    joined = pcm(blocks(data))
    assert np.array_equal(joined, to_int16(decode(data)))
    assert abs(len(joined) - 4 * SAMPLE_RATE) < 2_000


def test_a_corpus_of_many_rates_keeps_few_resampling_kernels() -> None:
    for rate in range(8_000, 12_000, 100):
        assert len(decode(encoded(tone(0.05, rate=rate), "wav", rate))) == pytest.approx(800, abs=2)
    assert waveform_module._resampler.cache_info().currsize <= 8


def test_the_memory_of_a_recording_is_that_of_its_int16_samples() -> None:
    block = Block(np.full(2**20, 0.5, np.float32), SAMPLE_RATE, 0, is_float=False)
    tracemalloc.start()
    try:
        joined = pcm(block._replace(samples=block.samples.copy()) for _ in range(64))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert joined.nbytes == 2**27
    assert peak < 2.2 * joined.nbytes  # the parts, and all of them joined
