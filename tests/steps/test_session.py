"""What a command records of its machine, and its precision: of an evaluation, that of its checkpoint's run."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folders import write_run

from kikitori.steps.session import _record_environment, _trainer_settings

AUTO = {"accelerator": "auto", "devices": 1, "precision": "auto"}


def settings(checkpoint: Path | None, gpus: int = 0, **given: Any) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda.device_count", lambda: gpus)
        return _trainer_settings(
            "evaluate", {"trainer": {**AUTO, **given}, "checkpoint": checkpoint and str(checkpoint)}
        )


def run_in(folder: Path, precision: str, device: str = "cpu, 2 threads") -> Path:
    return write_run(folder / "run", precision=precision, cost={"device": device})


@pytest.mark.parametrize("part", [".", "model", "checkpoints/step-2.ckpt"])
def test_a_checkpoint_is_scored_in_the_precision_of_its_run(
    tmp_path: Path, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    made = settings(run_in(tmp_path, "bf16-mixed") / part)
    assert (made["accelerator"], made["precision"]) == ("cpu", "bf16-mixed")
    (record,) = caplog.records
    assert record.getMessage() == (
        "on this machine: the CPU and precision bf16-mixed, in which its run scored the model"
    )


def test_on_another_kind_of_device_it_is_the_default_of_that(tmp_path: Path) -> None:
    assert settings(run_in(tmp_path / "cpu", "32"), gpus=1)["precision"] == "16-mixed"
    assert settings(run_in(tmp_path / "gpu", "16-mixed", "NVIDIA H100"))["precision"] == "32"
    assert settings(run_in(tmp_path / "gpus", "bf16-mixed", "NVIDIA H100"), gpus=1)["precision"] == "bf16-mixed"


def test_a_precision_that_is_given_is_used_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert settings(run_in(tmp_path, "bf16-mixed"), precision="32")["precision"] == "32"
    assert caplog.records[0].getMessage() == "on this machine: the CPU and precision 32"


@pytest.mark.parametrize("results", [None, "damaged", "{}", '{"config": {"trainer": {"precision": "auto"}}}'])
def test_a_checkpoint_without_a_known_precision_has_the_default(tmp_path: Path, results: str | None) -> None:
    (tmp_path / "run/model").mkdir(parents=True)
    if results is not None:
        (tmp_path / "run/results.json").write_text(results)
    assert settings(tmp_path / "run/model")["precision"] == "32"


def test_a_run_of_an_earlier_version_has_the_precision_that_was_set(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", config={"trainer": {"precision": "bf16-mixed"}})
    assert settings(run)["precision"] == "bf16-mixed"


def test_a_stock_model_has_the_default() -> None:
    assert settings(None)["precision"] == "32"


def test_a_resumed_run_names_what_changes_its_last_digits(caplog: pytest.LogCaptureFixture) -> None:
    results: dict = {}
    _record_environment(results, {"deterministic": True})
    first = dict(results["environment"])
    assert first["threads"] == torch.get_num_threads()
    assert first["deterministic"] is True
    _record_environment(results, {"deterministic": True})
    # A run of an earlier version recorded nothing.
    _record_environment({"environment": {}}, {"deterministic": True})
    assert caplog.text == ""
    results["environment"]["threads"] += 1
    _record_environment(results, {"deterministic": True})
    assert f"threads was {first['threads'] + 1} and is {first['threads']} now: the weights will differ" in caplog.text
    assert results["environment"] == first
