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


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
        torch.AcceleratorError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'", 2),
    ],
    ids=["cuBLAS", "cuDNN", "kernel"],
)
def test_a_library_without_memory_is_like_any_step_that_does_not_fit(
    wide: Whisper,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: RuntimeError,
) -> None:
    """cuBLAS, cuDNN and the driver allocate by themselves; these are their errors on a full GPU."""
    loss, gradients = first_step(wide, tmp_path, **GPU)
    module = "kikitori.training.lightning_module"
    encode = batch_size_finder.encode

    def fails(model: Any, features: torch.Tensor) -> torch.Tensor:
        if len(features) == 4:
            raise error
        return encode(model, features)

    monkeypatch.setattr(f"{module}.encode", fails)
    again, halves = first_step(wide, tmp_path, **GPU)
    assert "step 1: 4 clips at once do not fit into memory" in caplog.text
    assert again == pytest.approx(loss, rel=1e-5)
    assert distance(halves, gradients) < 1e-4


def test_auto_finds_what_fits_and_leaves_no_trace(
    wide: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    """Neither in the dropout's random numbers nor in the reported peak, although larger batches were tried."""
    wide.model.model.decoder.dropout = 0.1
    release = write_common_voice(tmp_path / "ja", {"train": 16, "dev": 1, "test": 1})
    monkeypatch.setenv("KIKITORI_CACHE", str(tmp_path / "cache"))
    sizes: list[int] = []

    def fit(micro_batch_size: Any) -> tuple[torch.Tensor, float]:
        whisper = copy.deepcopy(wide)
        settings = {"processor": whisper.processor, "micro_batch_size": micro_batch_size, "num_workers": 0}
        run, module = trainer(tmp_path, max_steps=2, **GPU), WhisperModule(whisper, OPTIM)
        torch.manual_seed(1)
        free_memory()
        torch.cuda.reset_peak_memory_stats()
        run.fit(module, datamodule=CommonVoice(str(release), **settings))
        assert module.oom_split == 1
        sizes.extend(module._found_sizes.values())
        return weights(module), hardware_facts(run)["peak_memory_gb"] * 2**30

    _, whole = fit(16)
    with memory_limit(0.6 * whole):
        searched, peak = fit("auto")
    given, own_peak = fit(sizes[1])
    apart = distance(searched, given)
    record_property("peak of 16 clips at once", f"{whole / 2**20:.0f} MB")
    record_property("found with 60 % of it", sizes[1])
    record_property("peaks with auto, with this size", f"{peak / 2**20:.0f}, {own_peak / 2**20:.0f} MB")
    record_property("relative difference of their weights", f"{apart:.1e}")
    assert 1 <= sizes[1] < 16
    assert apart < 1e-4
    assert peak == pytest.approx(own_peak, rel=0.02)
