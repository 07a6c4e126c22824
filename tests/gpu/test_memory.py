"""Memory on a GPU: a step that does not fit is halved, `micro_batch_size=auto` finds what fits, and reported peaks."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_models import distance, first_step, free_memory, weights
from recordings import write_common_voice
from training_runs import OPTIM, loader, trainer

from kikitori.data.datamodule import CommonVoice
from kikitori.model.loading import build_whisper
from kikitori.model.whisper import Whisper
from kikitori.training import batch_size_finder
from kikitori.training.batch_size_finder import find_micro_batch_sizes
from kikitori.training.lightning_module import WhisperModule
from kikitori.training.trainer import hardware_facts

GPU: dict[str, Any] = {"accelerator": "gpu", "devices": 1}


@pytest.fixture
def wide() -> Whisper:
    """Four clips in a window of 30 s take some 100 MB each in training, far more than the weights."""
    torch.manual_seed(0)
    whisper = build_whisper(d_model=256, encoder_layers=4, decoder_layers=1, attention_heads=4, window_s=30)
    whisper.configure_generation(max_new_tokens=4, num_beams=1)
    return whisper


def peak_of(work: Callable[[], Any]) -> int:
    """The most bytes that the allocator took from the GPU during some work."""
    free_memory()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_reserved()


@contextmanager
def memory_limit(size: float) -> Iterator[None]:
    """The GPU seems to have `size` bytes, as in a smaller one: more raise a real OutOfMemoryError."""
    free_memory()
    torch.cuda.set_per_process_memory_fraction(size / torch.cuda.get_device_properties(0).total_memory)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_step_that_does_not_fit_is_repeated_in_halves_with_the_same_gradients(
    wide: Whisper, tmp_path: Path, record_property: Any, caplog: pytest.LogCaptureFixture
) -> None:
    whole: list[Any] = []
    whole_peak = peak_of(lambda: whole.extend(first_step(wide, tmp_path, **GPU)))
    half_peak = peak_of(lambda: first_step(wide, tmp_path, {3000: 2}, **GPU))
    with memory_limit((whole_peak + half_peak) / 2):
        loss, gradients = first_step(wide, tmp_path, **GPU)
    record_property("peak at once, in halves", f"{whole_peak / 2**20:.0f} MB, {half_peak / 2**20:.0f} MB")
    record_property("relative difference of the gradients", f"{distance(gradients, whole[1]):.1e}")
    assert "step 1: 4 clips at once do not fit into memory" in caplog.text
    assert loss == pytest.approx(whole[0], rel=1e-5)
    assert distance(gradients, whole[1]) < 1e-4


def test_transcribing_what_does_not_fit_gives_the_same_texts_in_halves(
    wide: Whisper, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def predict(size: int) -> list[Any]:
        run = trainer(tmp_path, **GPU)
        batches: Any = run.predict(WhisperModule(copy.deepcopy(wide)), loader(wide, size))
        return [row for batch in batches for row in batch]

    texts: list[Any] = []
    whole_peak = peak_of(lambda: texts.extend(predict(4)))
    single_peak = peak_of(lambda: predict(1))
    with memory_limit((whole_peak + single_peak) / 2):
        assert predict(4) == texts
    assert "clips at once do not fit into memory; computing halves" in caplog.text


@pytest.mark.parametrize("library", ["CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
                                     "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"], ids=["cuBLAS", "cuDNN"])  # fmt: skip
def test_a_library_without_memory_is_like_any_step_that_does_not_fit(
    wide: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, library: str
) -> None:
    """cuBLAS and cuDNN allocate by themselves, and report a plain RuntimeError."""
    loss, gradients = first_step(wide, tmp_path, **GPU)
    module = "kikitori.training.lightning_module"
    encode = batch_size_finder.encode

    def fails(model: Any, features: torch.Tensor) -> torch.Tensor:
        if len(features) == 4:
            raise RuntimeError(f"CUDA error: {library}")
        return encode(model, features)

    monkeypatch.setattr(f"{module}.encode", fails)
    again, halves = first_step(wide, tmp_path, **GPU)
    assert "step 1: 4 clips at once do not fit into memory" in caplog.text
    assert again == pytest.approx(loss, rel=1e-5)
    assert distance(halves, gradients) < 1e-4


def test_auto_finds_what_fits_and_leaves_weights_and_random_numbers_as_they_were(
    wide: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    release = write_common_voice(tmp_path / "ja", {"train": 16, "dev": 1, "test": 1})
    data = CommonVoice(str(release), processor=wide.processor, micro_batch_size="auto", num_workers=0)
    run = trainer(tmp_path, max_steps=2, **GPU)
    found: dict[int, int] = {}

    def search(cache: str) -> None:
        monkeypatch.setenv("KIKITORI_CACHE", str(tmp_path / cache))
        found.update(find_micro_batch_sizes(run, wide, data))

    before, random = weights(wide), torch.cuda.get_rng_state()
    peak = peak_of(lambda: search("roomy"))
    assert found[3000] == 16
    with memory_limit(peak / 2):
        search("narrow")
        assert torch.equal(weights(wide), before)
        assert torch.equal(torch.cuda.get_rng_state(), random)
        module = WhisperModule(wide, OPTIM, micro_batch_sizes=found)
        run.fit(module, datamodule=data)
    record_property("16 clips take", f"{peak / 2**20:.0f} MB")
    record_property("clips at once with half of that", found[3000])
    assert found[3000] < 16
    assert module.oom_split == 1


def test_the_peak_of_a_run_is_not_that_of_the_search(wide: Whisper, tmp_path: Path, record_property: Any) -> None:
    """`micro_batch_size=auto` tries batches that are larger than any of the training's."""
    release = write_common_voice(tmp_path / "ja", {"train": 16, "dev": 1, "test": 1})
    peaks = {}
    for size in ("auto", 16):
        data = CommonVoice(str(release), processor=wide.processor, micro_batch_size=size, num_workers=0)
        run = trainer(tmp_path, max_steps=2, **GPU)
        module = WhisperModule(copy.deepcopy(wide), OPTIM)
        free_memory()
        torch.cuda.reset_peak_memory_stats()
        run.fit(module, datamodule=data)
        peaks[size] = hardware_facts(run)["peak_memory_gb"]
        del module, run
    record_property("GiB with auto, without", f"{peaks['auto']:.2f}, {peaks[16]:.2f}")
    assert peaks["auto"] == pytest.approx(peaks[16], rel=0.02)
