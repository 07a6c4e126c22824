from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import pipeline

from kikitori.audio.waveform import SAMPLE_RATE, decode
from kikitori.inference.generate import Generated, generate
from kikitori.inference.transcribe import piece_limit_s, transcribe, transcribe_pieces
from kikitori.model.loading import build_whisper
from kikitori.model.whisper import Whisper, encode
from kikitori.model.window import Window


def test_a_transcript_does_not_depend_on_the_other_clips_of_its_batch(micro: Whisper) -> None:
    features = torch.randn(3, 80, 100)
    micro.model.eval()
    states = encode(micro.model, features)
    together = generate(micro, states, [1.0] * 3)
    assert [row.text for row in together] == [generate(micro, row[None], [1.0])[0].text for row in states]


def test_generation_is_limited_by_the_models_context(micro: Whisper) -> None:
    micro.model.eval()
    micro.configure_generation(max_new_tokens=10_000, num_beams=1)
    tokens = micro.model.generate(torch.randn(1, 80, 100), language="ja", task="transcribe")
    assert tokens.shape[1] <= micro.processor.max_label_tokens


def pipeline_transcript(folder: Path, waveform: torch.Tensor) -> str:
    recognizer = pipeline("automatic-speech-recognition", model=str(folder), device="cpu")
    return recognizer({"raw": waveform.numpy(), "sampling_rate": SAMPLE_RATE})["text"].strip()


def test_the_transcript_equals_that_of_transformers_pipeline(micro: Whisper, tmp_path: Path) -> None:
    micro.model.eval()
    micro.save(tmp_path)
    waveform = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, 12_000).astype(np.float32))
    assert transcribe(micro, waveform) == pipeline_transcript(tmp_path, waveform)


@pytest.mark.slow
def test_the_transcript_of_real_speech_equals_that_of_transformers_pipeline(
    whisper_base: Whisper, speech: Path, tmp_path: Path
) -> None:
    whisper_base.model.eval()
    whisper_base.save(tmp_path)
    for clip in sorted((speech / "clips").glob("*.mp3"))[:3]:
        waveform = decode(clip)
        ours = transcribe(whisper_base, waveform)
        assert ours
        assert ours == pipeline_transcript(tmp_path, waveform)


class Reader:
    """Stands in for generation: pieces longer than spoiled_s get the text `spoiled`. seconds: of all pieces."""

    def __init__(self, spoiled_s: float, spoiled: Generated) -> None:
        self.spoiled_s, self.spoiled = spoiled_s, spoiled
        self.seconds: list[float] = []

    def __call__(self, whisper: Whisper, states: Tensor, seconds: list[float], stop_loops: bool) -> list[Generated]:
        assert stop_loops
        self.seconds += seconds
        return [self.spoiled if s > self.spoiled_s else Generated(text_of(s), False, 0.1, -0.3) for s in seconds]


def text_of(seconds: float) -> str:
    """Returns a text at the rate of speech."""
    return (2 * "いろはにほへとちりぬるをわかよたれそつねならむうゐのおくやまけふこえてあさきゆめみしゑひもせす")[
        : round(3 * seconds)
    ]


def phrases(*seconds: float) -> Tensor:
    """Returns noise as loud as speech, with a pause of 0.4 s after each phrase."""
    torch.manual_seed(0)
    pause = torch.zeros(round(0.4 * SAMPLE_RATE))
    return torch.cat([part for s in seconds for part in (0.2 * torch.randn(round(s * SAMPLE_RATE)), pause)])


@pytest.fixture
def whisper() -> Whisper:
    """A model with a window of 30 s."""
    return build_whisper(32, 1, 1, 2, window_s=30, max_label_tokens=64)


LOOP, CUT_OFF = Generated("ん" * 100, True, 0.1, -0.1), Generated("ことばことば", True, 0.1, -0.3)
NOTHING, NO_VOICE = Generated("", False, 0.1, -0.3), Generated("水", False, 0.9, -2.0)


@pytest.mark.parametrize("spoiled", [LOOP, CUT_OFF, NOTHING])
def test_a_doubtful_piece_is_read_again_in_halves(
    whisper: Whisper, monkeypatch: pytest.MonkeyPatch, spoiled: Generated
) -> None:
    reader = Reader(8.0, spoiled)
    monkeypatch.setattr("kikitori.inference.generate.generate", reader)
    pieces = transcribe_pieces(whisper, phrases(3.0, 3.0, 3.0, 3.0))
    assert reader.seconds == pytest.approx([13.6, 6.8, 6.8], abs=0.4)  # the whole and its halves
    assert [piece.text for piece in pieces] == [text_of(s) for s in reader.seconds[1:]]
    assert [piece.doubt for piece in pieces] == ["", ""]
    assert (pieces[0].start_s, pieces[0].end_s, pieces[1].end_s) == (0, pieces[1].start_s, 13.6)


def test_halves_that_are_no_better_are_not_taken(whisper: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(0.0, LOOP)
    monkeypatch.setattr("kikitori.inference.generate.generate", reader)
    (piece,) = transcribe_pieces(whisper, phrases(3.0, 3.0, 3.0, 3.0))
    assert (piece.text, piece.doubt) == ("ん", "repeats itself")
    # The whole, its halves and theirs: no deeper.
    assert len(reader.seconds) == 7


def test_short_pieces_and_pieces_without_speech_are_not_read_again(
    whisper: Whisper, monkeypatch: pytest.MonkeyPatch
) -> None:
    for spoiled, seconds, text, doubt in ((LOOP, 2.0, "ん", "repeats itself"), (NO_VOICE, 9.0, "", "no speech")):
        reader = Reader(0.0, spoiled)
        monkeypatch.setattr("kikitori.inference.generate.generate", reader)
        (piece,) = transcribe_pieces(whisper, phrases(seconds))
        assert (piece.text, piece.doubt, len(reader.seconds)) == (text, doubt, 1)


def test_silence_is_not_read(whisper: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kikitori.inference.generate.generate", Reader(0.0, LOOP))
    (piece,) = transcribe_pieces(whisper, torch.full((8 * SAMPLE_RATE,), 0.003))
    assert (piece.text, piece.doubt) == ("", "")
    assert transcribe(whisper, torch.zeros(0)) == ""


def test_pieces_are_as_long_as_most_of_the_training_clips(whisper: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = phrases(*[2.6] * 20)
    for facts, longest_s, count in (
        (None, 30.0, 2),
        ({"longest_s": 29.0, "p95_s": 6.5, "density": 0.3}, 6.5, 10),
        ({"longest_s": 0.9, "p95_s": 0.8, "density": 0.3}, 2.0, 40),
    ):
        reader = Reader(99.0, LOOP)
        monkeypatch.setattr("kikitori.inference.generate.generate", reader)
        if facts:
            whisper.set_trained_on(facts)
        assert piece_limit_s(whisper) == longest_s
        read: list[float] = []
        pieces = transcribe_pieces(whisper, recording, advance=read.append)
        assert max(reader.seconds) <= longest_s
        assert len(pieces) == len(reader.seconds) == pytest.approx(count, abs=1 + count // 5)
        assert [piece.start_s for piece in pieces[1:]] == [piece.end_s for piece in pieces[:-1]]
        assert sum(read) == pytest.approx(len(recording) / SAMPLE_RATE)


def test_texts_stay_in_order_when_pieces_have_different_windows(
    whisper: Whisper, monkeypatch: pytest.MonkeyPatch
) -> None:
    whisper.set_window(Window((2.0, 3.0, 4.0), 0.1))
    reader = Reader(99.0, LOOP)
    monkeypatch.setattr("kikitori.inference.generate.generate", reader)
    pieces = transcribe_pieces(whisper, phrases(1.2, 3.0, 2.2, 3.1, 1.5, 2.8), batch_size=2)
    assert reader.seconds == sorted(reader.seconds, key=lambda s: whisper.processor.window_frames(round(16000 * s)))
    assert [piece.text for piece in pieces] == [text_of(p.end_s - p.start_s) for p in pieces]


@pytest.mark.slow
def test_no_real_clip_loses_its_text_and_noise_gets_none(whisper_base: Whisper, speech: Path) -> None:
    torch.manual_seed(0)
    white = 0.03 * torch.randn(5 * SAMPLE_RATE)
    hum = 0.03 * torch.sin(torch.arange(5 * SAMPLE_RATE) * 2 * torch.pi * 50 / SAMPLE_RATE)
    tone = 0.1 * torch.sin(torch.arange(5 * SAMPLE_RATE) * 2 * torch.pi * 440 / SAMPLE_RATE)
    for audio in (white, hum, tone, 0.01 * white, torch.zeros(80_000)):
        assert transcribe(whisper_base, audio) == ""
    for clip in sorted((speech / "clips").glob("*.mp3"))[::6]:
        (piece,) = transcribe_pieces(whisper_base, decode(clip))
        assert piece.text
        assert not piece.doubt
