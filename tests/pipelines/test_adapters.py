"""Runs with an adapter: what they save, that it is read again, and that they resume exactly."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import composed
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from kikitori.adapters import layers, quantised
from kikitori.adapters.folder import add_timestamps
from kikitori.model.loading import load_whisper
from kikitori.pipelines import train as pipeline
from kikitori.pipelines.evaluate import evaluate, load_checkpoint
from kikitori.pipelines.mixing import check_alike
from kikitori.runtime.errors import ModelError, Stopped
from kikitori.runtime.files import read_json
from kikitori.runtime.paths import CONF
from kikitori.training.checkpoints import SaveLastCheckpoint, read_checkpoint
from kikitori.training.lightning_module import WhisperModule

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not layers.is_available(), reason=f"an adapter {layers.EXTRA}"),
    pytest.mark.filterwarnings("ignore"),
]
SMALL = [
    *(
        "experiment=demo",
        "logger=none",
        "generation.max_new_tokens=6",
        "validation.every_steps=2",
        "trainer.max_steps=4",
        "score.train_clips=3",
    ),
    *("data.limit={train: 12, validation: 4, test: 4}", "optim.lr=1e-2", "callbacks.checkpoint.monitor=val/loss"),
]
MICRO = ["model.d_model=32", "model.encoder_layers=1", "model.decoder_layers=1"]
BUCKETED = ["data.window=bucketed", "data.window_edges_s=[2]", "data.full_window_share=0"]
ADAPTER = ["adapter=lora", "adapter.rank=4", "adapter.dropout=0.1", "adapter.targets=[q_proj,v_proj,fc1]"]


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(folder: Path, *words: str) -> dict[str, Any]:
    return pipeline.train(composed("train", [*SMALL, *words]), folder)


def texts(folder: Path, stage: str) -> list[str]:
    lines = (folder / "predictions" / f"test_{stage}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["hypothesis"] for line in lines]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained in full, in shorter windows than its own."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("base")
    run(folder, *MICRO, *BUCKETED, "keep=model")
    return folder / "model"


@pytest.fixture(scope="module")
def completed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("completed")
    run(folder, "model=whisper_base", f"model.name={base}", "data.window=null", *ADAPTER)
    return folder


def score(folder: Path, *words: str) -> list[str]:
    given = ["data=demo", "data.limit.test=4", "data.num_workers=0", "splits=[test]", *words]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        evaluate(compose("evaluate", [*given, "trainer.accelerator=cpu"]), folder)
    return texts(folder, "evaluated")


def test_model_adapter_and_checkpoint_read_the_same_texts(completed: Path, base: Path, tmp_path: Path) -> None:
    best = completed / read_json(completed / "results.json")["checkpoint"]["best"]
    expected = texts(completed, "after")
    for number, place in enumerate((best, completed, completed / "adapter")):
        assert score(tmp_path / str(number), f"checkpoint={place}") == expected
    merged, read = load_whisper(str(completed)), load_whisper(str(completed / "adapter"))
    assert all(torch.equal(merged.model.state_dict()[k], value) for k, value in read.model.state_dict().items())
    assert read.processor.window == merged.processor.window == load_whisper(str(base)).processor.window
    assert read.trained_on == merged.trained_on
    facts = {"texts": 4, "stamped": 100.0, "near_joints": 80.0, "cer": 20.0}
    facts |= {"most_near_joints_change": 0, "least_cer_change": 0}
    shutil.copytree(completed / "adapter", tmp_path / "adapter")
    add_timestamps(facts, tmp_path / "adapter")
    again = load_whisper(str(tmp_path / "adapter"))
    assert (again.timestamps, again.trained_on, read.timestamps) == (facts, read.trained_on, None)


def test_a_checkpoint_is_read_as_a_plain_model_which_can_be_averaged(completed: Path) -> None:
    settings = {"data": {"language": "ja"}, "model": {"language": None, "task": None}}
    read = load_checkpoint({**settings, "checkpoint": str(completed / "checkpoints/last.ckpt")})
    assert read.adapter is None
    check_alike({"checkpoint": read, "model": load_whisper(str(completed))})


def test_a_checkpoint_is_loaded_as_a_lightning_module(completed: Path) -> None:
    module = WhisperModule.load_from_checkpoint(completed / "checkpoints/last.ckpt", weights_only=True)
    assert module.whisper.adapter is not None
    # A checkpoint's optimizer knows the adapter only: A and B of 4 ranks, with two moments each.
    checkpoint = read_checkpoint(completed / "checkpoints/last.ckpt")
    states = checkpoint["optimizer_states"][0]["state"].values()
    trained = sum(p.numel() for p in module.model.parameters() if p.requires_grad)
    assert sum(state["exp_avg"].numel() for state in states) == trained


def test_results_and_card_describe_the_adapter(completed: Path) -> None:
    results = read_json(completed / "results.json")
    assert results["model"]["adapter"] == {"kind": "lora", "layers": 8, "parameters": 6 * 4 * 64 + 2 * 4 * 160}
    assert "lora of rank 4 (alpha 32) on q_proj v_proj fc1" in (completed / "model/README.md").read_text()


def interrupt(monkeypatch: pytest.MonkeyPatch, folder: Path, words: list[str]) -> None:
    """Starts a run that is stopped by a signal at its third step."""
    on_start = SaveLastCheckpoint.on_train_batch_start

    def stop_at_the_third_step(self: Any, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step == 3:
            self.stop.number = 15
        on_start(self, trainer, *arguments)

    with monkeypatch.context() as changed:
        changed.setattr(SaveLastCheckpoint, "on_train_batch_start", stop_at_the_third_step)
        with pytest.raises(Stopped):
            run(folder, *words)


def assert_equal(one: Path, other: Path) -> None:
    """Asserts that the models and adapters of two runs are equal to the bit."""
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        expected, found = load_file(one / name), load_file(other / name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_run_that_is_interrupted_and_resumed_equals_a_whole_one(
    completed: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["model=whisper_base", f"model.name={base}", "data.window=null", *ADAPTER]
    interrupt(monkeypatch, tmp_path, words)
    assert not (tmp_path / "adapter").exists()
    run(tmp_path, *words, "resume=auto")
    assert_equal(completed, tmp_path)


@pytest.mark.long
@pytest.mark.skipif(not quantised.is_available(), reason=f"a base in 4 bits {quantised.EXTRA}")
@pytest.mark.parametrize("bits", [8, 4])
def test_a_base_in_few_bits_is_resumed_and_read_as_it_was_trained(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    words = ["model=whisper_base", f"model.name={base}", "data.window=null", *ADAPTER, f"adapter.base_bits={bits}"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    results = run(whole, *words)
    assert results["model"]["adapter"]["base_bits"] == bits
    plain = load_whisper(str(base))
    assert results["model"]["parameters"] == plain.num_parameters + results["model"]["adapter"]["parameters"]
    assert f"trained on weights in {bits} bits" in (whole / "model/README.md").read_text(encoding="utf-8")
    interrupt(monkeypatch, resumed, words)
    run(resumed, *words, "resume=auto")
    assert_equal(whole, resumed)
    best = whole / results["checkpoint"]["best"]
    expected = texts(whole, "after")
    for number, place in enumerate((best, whole, whole / "adapter")):
        assert score(tmp_path / str(number), f"checkpoint={place}") == expected
    merged, read = load_whisper(str(whole)), load_whisper(str(whole / "adapter"))
    assert all(torch.equal(merged.model.state_dict()[k], value) for k, value in read.model.state_dict().items())


@pytest.mark.long
def test_cached_outputs_of_a_frozen_encoder_train_adapters_of_the_decoder(base: Path, tmp_path: Path) -> None:
    words = ["model=whisper_base", f"model.name={base}", "model.freeze=encoder", "data.cache_encoder_outputs=true"]
    for number, cached in enumerate((words, words[:-1])):
        run(tmp_path / str(number), *cached, "adapter=dora", "adapter.rank=4", "keep=model")
    one, other = (load_file(tmp_path / str(number) / "adapter/adapter_model.safetensors") for number in range(2))
    assert all(".decoder." in name for name in one)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_checkpoint_whose_base_is_gone_names_both(completed: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(completed / "checkpoints/last.ckpt")
    checkpoint["hyper_parameters"]["recipe"]["name"] = "outputs/elsewhere/model"
    torch.save(checkpoint, tmp_path / "moved.ckpt")
    settings = {"checkpoint": str(tmp_path / "moved.ckpt"), "data": {"language": "ja"}}
    with pytest.raises(ModelError, match=r"moved\.ckpt was trained from outputs/elsewhere/model, which does not exist"):
        load_checkpoint({**settings, "model": {"language": None, "task": None}})


def test_an_adapter_of_a_checkpoint_needs_peft(completed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "is_available", lambda: False)
    settings = {"checkpoint": str(completed / "checkpoints/last.ckpt"), "data": {"language": "ja"}}
    with pytest.raises(Exception, match=r"pip install 'kikitori\[peft\]'"):
        load_checkpoint({**settings, "model": {"language": None, "task": None}})
    shutil.rmtree(completed / "checkpoints")  # the rest is readable without peft
    assert load_whisper(str(completed / "adapter")).adapter is None
