"""Shared by every test: a cache of its own, quiet threads, a micro model, and real speech and weights where they are.

KIKITORI_TEST_SPEECH names a Common Voice language folder, KIKITORI_TEST_WHISPER a folder of pretrained whisper-base.
"""

import os
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import transformers

from kikitori.model.loading import build_whisper, load_whisper
from kikitori.model.whisper import Whisper

transformers.logging.set_verbosity_error()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIKITORI_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def micro() -> Whisper:
    """The smallest Whisper that is one: random weights, a window of 1 s."""
    torch.manual_seed(0)
    whisper = build_whisper(
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        attention_heads=2,
        window_s=1,
        language="ja",
        task="transcribe",
        max_label_tokens=64,
        init_std=0.02,
    )
    whisper.configure_generation(max_new_tokens=12, num_beams=1)
    return whisper


@pytest.fixture(scope="session")
def speech() -> Path:
    """Real clips in Common Voice's layout."""
    folder = os.environ.get("KIKITORI_TEST_SPEECH")
    if not folder:
        pytest.skip("KIKITORI_TEST_SPEECH names no Common Voice language folder")
    return Path(folder)


@pytest.fixture(scope="session")
def whisper_base() -> Whisper:
    """Pretrained whisper-base."""
    folder = os.environ.get("KIKITORI_TEST_WHISPER")
    if not folder:
        pytest.skip("KIKITORI_TEST_WHISPER names no folder of pretrained whisper-base")
    return load_whisper(folder, "ja", "transcribe")
