"""A step, validation, decoding and saving on a GPU in each precision, against the CPU in 32-bit."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_models import distance, first_step, small_whisper, weights
from training_runs import OPTIM, TEXTS, examples, loader, trainer, training

from kikitori.data.collate import collate
from kikitori.model.loading import load_whisper
from kikitori.model.whisper import Whisper, encode
from kikitori.training.lightning_module import WhisperModule

# Lightning's name, and the relative distance to the CPU that rounding may cause in losses, gradients and logits.
TOLERANCES = {"32-true": 1e-4, "16-mixed": 1e-2, "bf16-mixed": 5e-2}
GPU: dict[str, Any] = {"accelerator": "gpu", "devices": 1}

by_precision = pytest.mark.parametrize("precision", TOLERANCES)


@pytest.fixture(scope="session")
def memorised(tmp_path_factory: pytest.TempPathFactory) -> Whisper:
    """A model that has learnt four clips by heart, so that no rounding decides which token is the likeliest."""
    whisper = small_whisper()
    folder = tmp_path_factory.mktemp("memorised")
    trainer(folder, max_steps=150, **GPU).fit(WhisperModule(whisper, OPTIM), training(whisper, 4, 150))
    whisper.model.cpu()
    return whisper


@by_precision
def test_a_step_has_the_loss_and_gradients_of_the_cpu(precision: str, tmp_path: Path, record_property: Any) -> None:
    whisper = small_whisper()
    loss, gradients = first_step(whisper, tmp_path)
    on_gpu, gpu_gradients = first_step(whisper, tmp_path, precision=precision, **GPU)
    of_loss, of_gradients = abs(on_gpu - loss) / loss, distance(gpu_gradients, gradients)
    record_property("relative difference of the loss", f"{of_loss:.1e}")
    record_property("of the gradients", f"{of_gradients:.1e}")
    assert of_loss < TOLERANCES[precision]
    assert of_gradients < TOLERANCES[precision]


@by_precision
def test_validation_has_the_loss_and_error_rate_of_the_cpu(
    memorised: Whisper, precision: str, tmp_path: Path, record_property: Any
) -> None:
    rates = []
    for settings in ({}, {"precision": precision, **GPU}):
        module = WhisperModule(copy.deepcopy(memorised))
        rates += trainer(tmp_path, **settings).validate(module, loader(memorised, 3), verbose=False)
    record_property("loss on the CPU", f"{rates[0]['val/loss']:.5f}")
    record_property("on the GPU", f"{rates[1]['val/loss']:.5f}")
    assert rates[1]["val/loss"] == pytest.approx(rates[0]["val/loss"], rel=TOLERANCES[precision])
    assert rates[1]["val/cer"] == rates[0]["val/cer"] == 0


@by_precision
def test_greedy_decoding_gives_the_texts_of_the_cpu(memorised: Whisper, precision: str, tmp_path: Path) -> None:
    batches: Any = trainer(tmp_path, precision=precision, **GPU).predict(
        WhisperModule(copy.deepcopy(memorised)), loader(memorised, 4)
    )
    assert [row[2] for batch in batches for row in batch] == TEXTS


@by_precision
def test_a_saved_model_computes_on_the_cpu_what_it_computed_on_the_gpu(
    precision: str, tmp_path: Path, record_property: Any
) -> None:
    whisper = small_whisper()
    run = trainer(tmp_path, max_steps=2, precision=precision, **GPU)
    run.fit(WhisperModule(whisper, OPTIM), training(whisper, 4, 2))
    run.save_checkpoint(tmp_path / "a.ckpt")
    features = collate(examples(whisper))["input_features"][0]
    on_gpu = whisper.model.cuda().eval()
    whisper.save(tmp_path / "model")
    loaded = load_whisper(str(tmp_path / "model")).model.eval()
    with torch.no_grad():
        difference = distance(encode(on_gpu, features.cuda()).cpu(), encode(loaded, features))
    record_property("relative difference of the encoder's output", f"{difference:.1e}")
    assert difference < 1e-4
    assert torch.equal(weights(WhisperModule(Whisper(loaded, whisper.processor, whisper.arguments))), weights(whisper))
    checkpoint = torch.load(tmp_path / "a.ckpt", map_location="cpu", weights_only=True)
    assert all(value.dtype == torch.float32 for value in checkpoint["state_dict"].values())
