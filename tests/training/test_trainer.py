"""The Trainer's settings on a machine with and without GPUs, and what is refused before it is built."""

from pathlib import Path
from typing import Any

import pytest

from kikitori.runtime.errors import ConfigError
from kikitori.training.trainer import build_trainer, resolve_trainer_settings

AUTO: dict[str, Any] = {"accelerator": "auto", "devices": 1, "precision": "auto"}


@pytest.mark.parametrize(
    ("given", "gpus", "resolved"),
    [
        ({}, 0, ("cpu", 1, "32")),
        ({}, 8, ("gpu", 1, "16-mixed")),
        ({"devices": "auto"}, 8, ("gpu", 8, "16-mixed")),
        ({"devices": "auto", "accelerator": "cpu"}, 8, ("cpu", 1, "32")),
        ({"precision": "16-mixed"}, 0, ("cpu", 1, "32")),
        ({"precision": "bf16-mixed"}, 0, ("cpu", 1, "bf16-mixed")),
        ({"accelerator": "cuda"}, 1, ("cuda", 1, "16-mixed")),
    ],
)
def test_auto_is_resolved_for_the_machine(given: dict[str, Any], gpus: int, resolved: tuple[Any, ...]) -> None:
    settings, changes = resolve_trainer_settings({**AUTO, **given}, gpus)
    assert tuple(settings[key] for key in ("accelerator", "devices", "precision")) == resolved
    assert resolved[2] in changes[0]


@pytest.mark.parametrize(("devices", "nodes", "kept"), [(1, 1, False), (2, 1, True), (1, 2, True)])
def test_one_process_needs_no_strategy(devices: int, nodes: int, kept: bool) -> None:
    ddp = {"devices": devices, "num_nodes": nodes, "strategy": {"_target_": "kikitori.ddp"}}
    settings, _ = resolve_trainer_settings({**AUTO, **ddp}, 2)
    assert ("strategy" in settings) == kept


@pytest.mark.parametrize(
    ("given", "gpus", "message"),
    [
        ({"accelerator": "gpu"}, 0, "trainer.accelerator=gpu, but no GPU is visible; use auto or cpu"),
        ({"accelerator": "cuda"}, 0, "trainer.accelerator=cuda, but no GPU is visible; use auto or cpu"),
        ({"devices": 2}, 1, r"trainer.devices=2, but this machine has 1 visible GPUs; use fewer, or auto"),
    ],
)
def test_hardware_that_is_missing_is_named(given: dict[str, Any], gpus: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_trainer_settings({**AUTO, **given}, gpus)


def test_settings_that_lightning_refuses_are_listed_in_one_line(tmp_path: Path) -> None:
    settings = {"_target_": "pytorch_lightning.Trainer", "accelerator": "cuda", "devices": 99}
    with pytest.raises(ConfigError) as caught:
        build_trainer(settings, tmp_path, [], [])
    assert "Lightning's Trainer refuses its settings: " in str(caught.value)
    assert str(caught.value).endswith("(trainer.accelerator=cuda, trainer.devices=99)")
