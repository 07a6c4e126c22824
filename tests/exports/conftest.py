"""A random Whisper of real vocabulary in a folder, and clips of noise, each of which it reads otherwise."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from exportable import BASE, LARGE_V3, write_exportable

from kikitori.corpora.types import Speech
from kikitori.model.loading import load_whisper
from kikitori.model.whisper import Whisper


@pytest.fixture(
    scope="session", params=[BASE, pytest.param(LARGE_V3, marks=pytest.mark.long)], ids=["base", "large-v3"]
)
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_exportable(tmp_path_factory.mktemp("exportable") / "model", request.param)


@pytest.fixture(scope="session")
def exported(model_folder: Path) -> Whisper:
    """The model of `model_folder`, which no test changes."""
    whisper = load_whisper(str(model_folder))
    whisper.model.eval()
    return whisper


@pytest.fixture(scope="session")
def noises() -> Sequence[Speech]:
    """Clips of noise with invented transcripts, the last one longer than the window."""
    generator = torch.Generator().manual_seed(0)
    sounds = [torch.rand(samples, generator=generator) * 0.2 - 0.1 for samples in (16_000, 40_000, 500_000)]
    return [Speech(f"{i}.wav", sound, "abc", "ja") for i, sound in enumerate(sounds)]
