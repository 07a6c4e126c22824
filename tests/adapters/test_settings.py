from typing import Any

import pytest

from kikitori.adapters.settings import TARGETS, AdaLora, Lora, adapter_from_plain
from kikitori.runtime.errors import ConfigError, ModelError

CHOSEN = ["model.decoder.layers.0.fc1"]


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"rank": 0}, r"adapter\.rank=0: must be a whole number above 0"),
        ({"rank": 4.5}, r"adapter\.rank=4\.5: must be a whole number"),
        ({"rank": 2_000}, r"adapter\.rank=2000: must be at most 1024"),
        ({"alpha": "high"}, r"adapter\.alpha=high: must be a number above 0"),
        ({"dropout": 1.5}, r"adapter\.dropout=1\.5: must be a number between 0 and 1"),
        ({"kind": "dorra"}, r"adapter\.kind=dorra: must be lora or rslora or dora"),
        ({"targets": []}, r"adapter\.targets: must be a list of names"),
        ({"targets": "q_proj"}, r"adapter\.targets: must be a list of names of linear layers, got 'q_proj'"),
        ({"targets": ["q_proj", "conv1"]}, r"no linear layer conv1; there are q_proj, k_proj, v_proj, out_proj, fc1"),
    ],
)
def test_impossible_settings_are_named(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        Lora(**settings)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"rank": 8, "initial_rank": 8}, r"adapter\.initial_rank=8: must be above adapter\.rank=8"),
        ({"warmup_share": 0.5, "final_share": 0.5}, "must be below 1 together"),
        ({"every_steps": 0}, r"adapter\.every_steps=0"),
        ({"orthogonality": -1}, r"adapter\.orthogonality=-1"),
    ],
)
def test_impossible_settings_of_adalora_are_named(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        AdaLora(**settings)


def test_the_scale_is_that_of_the_papers() -> None:
    assert Lora(16, 32).scale == 2
    assert Lora(16, 32, kind="dora").scale == 2
    assert Lora(16, 32, kind="rslora").scale == 8
    assert AdaLora(16, 24).scale == pytest.approx(1, rel=1e-5)  # of 24 ranks at the beginning
    assert AdaLora(16, 24, initial_rank=48).scale == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("adapter", [Lora(3, 5, 0.1, TARGETS, "dora"), AdaLora(2, targets=["fc1"], every_steps=4)])
def test_a_recipe_holds_all_settings(adapter: Lora) -> None:
    again, modules = adapter_from_plain({**adapter.as_plain(), "modules": CHOSEN})
    assert again.as_plain() == adapter.as_plain()
    assert type(again) is type(adapter)
    assert modules == CHOSEN


@pytest.mark.parametrize(
    "changes", [{"rank": 10**9}, {"code": "x"}, {"modules": None}, {"kind": ["lora"]}, {"targets": {"a": 1}}]
)
def test_a_recipe_that_kikitori_did_not_write_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="the checkpoint's recipe has no usable adapter"):
        adapter_from_plain({**Lora().as_plain(), "modules": CHOSEN, **changes})


def test_a_recipe_whose_adapter_is_no_mapping_is_refused() -> None:
    with pytest.raises(ModelError, match="no usable adapter"):
        adapter_from_plain(["lora"])
