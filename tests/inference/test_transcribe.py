from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import pipeline

from kikitori.audio.waveform import SAMPLE_RATE, decode
from kikitori.inference.generate import generate
from kikitori.inference.transcribe import transcribe
from kikitori.model.whisper import Whisper, encode


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
