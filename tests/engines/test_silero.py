"""silero-vad silences all but speech."""

import sys
from pathlib import Path

import pytest
import torch

from kikitori.audio.waveform import SAMPLE_RATE, decode
from kikitori.engines import silero
from kikitori.engines.silero import load_silero
from kikitori.runtime.errors import ConfigError


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silero, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--pauses silero needs another package: pip install 'kikitori\[silero\]'"):
        load_silero()


def test_the_number_of_threads_stays_when_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("silero_vad", reason="silero-vad is not installed")
    for name in [name for name in sys.modules if name.partition(".")[0] == "silero_vad"]:
        monkeypatch.delitem(sys.modules, name)
    torch.set_num_threads(2)
    load_silero()
    assert torch.get_num_threads() == 2


def test_noise_and_tones_are_silenced() -> None:
    pytest.importorskip("silero_vad", reason="silero-vad is not installed")
    only_speech = load_silero()
    tone = 0.1 * torch.sin(torch.arange(3 * SAMPLE_RATE) * 2 * torch.pi * 440 / SAMPLE_RATE)
    for samples in (tone, 0.03 * torch.randn(3 * SAMPLE_RATE), torch.zeros(100), torch.zeros(0)):
        heard = only_speech(samples)
        assert heard.shape == samples.shape
        assert not heard.any()


@pytest.mark.slow
def test_real_speech_is_kept(speech: Path) -> None:
    pytest.importorskip("silero_vad", reason="silero-vad is not installed")
    samples = decode(sorted((speech / "clips").glob("*.mp3"))[0])
    tone = 0.1 * torch.sin(torch.arange(3 * SAMPLE_RATE) * 2 * torch.pi * 440 / SAMPLE_RATE)
    heard = load_silero()(torch.cat([tone, samples, tone]))
    kept = heard[len(tone) : -len(tone)]
    assert float(kept.square().sum() / samples.square().sum()) > 0.95
    assert not heard[: 2 * SAMPLE_RATE].any()
