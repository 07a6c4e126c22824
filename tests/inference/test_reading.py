"""Whether long recordings are read by the model's timestamps or by their pauses."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.inference import transcribe as module
from kikitori.inference.reading import choose_reading
from kikitori.inference.segments import Piece
from kikitori.inference.transcribe import transcribe_pieces
from kikitori.model.loading import build_whisper, load_whisper
from kikitori.model.whisper import Whisper
from kikitori.runtime.errors import ModelError

KEPT = {
    "texts": 4,
    "stamped": 100.0,
    "near_joints": 80.0,
    "cer": 20.0,
    "most_near_joints_change": 5.0,
    "least_cer_change": -2.0,
}
CLIPS = {"longest_s": 3.0, "p95_s": 3.0, "density": 0.3}


@pytest.fixture
def whisper() -> Whisper:
    torch.manual_seed(0)
    return build_whisper(d_model=16, encoder_layers=1, decoder_layers=1, timestamps=True)


@pytest.mark.parametrize(
    ("change", "segments", "reason"),
    [
        ({}, "timestamps", "timestamps in 4 of 4 texts, and near 80 % of the joints of their clips"),
        ({"stamped": 90.0, "texts": 10, "near_joints": 50.0}, "timestamps", "in 9 of 10 texts"),
        ({"texts": 2}, "pauses", "fewer than 3 texts show nothing"),
        ({"stamped": 89.9}, "pauses", "too few texts, below 90 %"),
        ({"near_joints": 49.9}, "pauses", "too few joints, below 50 %"),
        ({"cer": 50.1}, "pauses", "a CER of 50 % by timestamps shows nothing, above 50 %"),
        ({"most_near_joints_change": -0.1}, "pauses", "clearly fewer joints than the base"),
        ({"least_cer_change": 0.1}, "pauses", "the CER of long recordings is clearly higher by timestamps"),
    ],
)
def test_timestamps_are_used_if_the_guard_found_that_they_were_kept(
    whisper: Whisper, change: dict[str, float], segments: str, reason: str
) -> None:
    whisper.set_timestamps(KEPT | change)
    reading = choose_reading(whisper)
    assert reading.segments == segments
    assert reason in reading.reason


def test_without_a_guard_recordings_are_read_by_their_pauses(whisper: Whisper, micro: Whisper) -> None:
    assert choose_reading(whisper) == ("pauses", "its timestamps were not checked, as kikitori guard does")
    micro.set_timestamps(KEPT)
    assert choose_reading(micro) == ("pauses", "the model has no timestamps")


def test_a_copied_model_knows_what_the_guard_found_until_it_is_trained(whisper: Whisper, tmp_path: Path) -> None:
    whisper.set_trained_on(CLIPS)
    whisper.set_timestamps(KEPT)
    whisper.save(tmp_path)
    again = load_whisper(str(tmp_path))
    assert again.timestamps == KEPT
    assert choose_reading(again).segments == "timestamps"
    again.set_trained_on(CLIPS)
    assert again.timestamps is None
    again.save(tmp_path)
    assert load_whisper(str(tmp_path)).timestamps is None
    with pytest.raises(ModelError, match="timestamps has no texts"):
        whisper.set_timestamps({name: value for name, value in KEPT.items() if name != "texts"})


@pytest.mark.parametrize(("seconds", "by_timestamps"), [(3.0, False), (3.1, True)])
def test_only_recordings_longer_than_the_window_are_read_by_timestamps(
    whisper: Whisper,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    seconds: float,
    by_timestamps: bool,
) -> None:
    whisper.set_timestamps(KEPT)

    def read_by_timestamps(*arguments: Any) -> list[Piece]:
        return [Piece(0, 1, "by timestamps", "")]

    monkeypatch.setattr(module, "read_by_timestamps", read_by_timestamps)
    samples = torch.zeros(round(seconds * SAMPLE_RATE))
    with caplog.at_level(logging.INFO, "kikitori"):
        texts = [piece.text for piece in transcribe_pieces(whisper, samples)]
    assert (texts == ["by timestamps"]) is by_timestamps
    assert ("read by timestamps: the guard found" in caplog.text) is by_timestamps
    assert "by timestamps" not in [piece.text for piece in transcribe_pieces(whisper, samples, segments="pauses")]
