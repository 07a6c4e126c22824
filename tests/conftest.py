"""Fixtures of all tests: a separate cache, threads that wait idly, a micro model, and real speech and weights if given.

KIKITORI_TEST_SPEECH names a Common Voice language folder, KIKITORI_TEST_WHISPER a folder of pretrained whisper-base.
torch and transformers are imported in the fixtures: pytest-xdist's controller loads this file and runs no test.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import pytest

if TYPE_CHECKING:
    from kikitori.model.whisper import Whisper

# On a busy machine any example may exceed the default of 200 ms.
hypothesis.settings.register_profile("kikitori", deadline=None)
hypothesis.settings.load_profile("kikitori")


@pytest.fixture(scope="session", autouse=True)
def _quiet_transformers() -> None:
    import transformers

    transformers.logging.set_verbosity_error()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIKITORI_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _restore_environment() -> Iterator[None]:
    """The command sets variables for the processes it starts, from which the next test would take its command line."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _reset_hydra() -> Iterator[None]:
    """Hydra keeps the composed configuration in a global, from which the next test would take its overrides."""
    yield
    if module := sys.modules.get("hydra.core.hydra_config"):
        module.HydraConfig.instance().cfg = None


@pytest.fixture
def micro() -> "Whisper":
    """A very small Whisper with random weights and a window of 1 s."""
    import torch

    from kikitori.model.loading import build_whisper

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
        pytest.skip("KIKITORI_TEST_SPEECH is not set to a Common Voice language folder")
    return Path(folder)


@pytest.fixture(scope="session")
def whisper_base() -> "Whisper":
    """Pretrained whisper-base."""
    from kikitori.model.loading import load_whisper

    folder = os.environ.get("KIKITORI_TEST_WHISPER")
    if not folder:
        pytest.skip("KIKITORI_TEST_WHISPER is not set to a folder of pretrained whisper-base")
    return load_whisper(folder, "ja", "transcribe")
