"""`joining=...` on the command line: each key checked before anything loads, and runs of versions without it resume."""

import copy
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from kikitori.config.targets import instantiate
from kikitori.config.validation import check_config
from kikitori.joining.settings import Joining
from kikitori.runs.model_card import model_card
from kikitori.runs.resume import changes
from kikitori.runtime.errors import ConfigError
from kikitori.runtime.paths import CONF

MICRO = ("data=demo", "model=micro", "model.timestamps=true")


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return check_config(compose("train", ["logger=none", *overrides]))


@pytest.fixture(scope="module")
def valid() -> dict[str, Any]:
    return composed(*MICRO, "joining=windows", "model.freeze=encoder")


def test_by_default_nothing_is_joined() -> None:
    joining = instantiate(composed("data=demo")["joining"], "joining")
    assert joining == Joining()
    assert not joining.changes_training


def test_the_choice_is_what_its_comments_say() -> None:
    joining = instantiate(composed(*MICRO, "joining=windows")["joining"], "joining")
    assert joining == Joining(0.5, 0.5, [0.1, 1.0], 0.5, 0.5, 0.02, [-60, -20])
    assert joining.changes_training


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("joining.share=1.5", "joining.share: must be between 0 and 1, got 1.5"),
        ("joining.share=half", "joining.share: must be a number, got 'half'"),
        ("joining.same_speaker=-1", "joining.same_speaker: must be between 0 and 1, got -1"),
        ("joining.timestamps=2", "joining.timestamps: must be between 0 and 1, got 2"),
        ("joining.timestamps=true", "joining.timestamps: must be a number, got True"),
        ("joining.previous_text=null", "joining.previous_text: must be a number, got None"),
        ("joining.non_speech=-0.1", "joining.non_speech: must be between 0 and 1, got -0.1"),
        ("joining.silence_s=1", "joining.silence_s: must be a list of numbers, got 1"),
        ("joining.silence_s=[1]", "joining.silence_s: must be two numbers of at least 0, the lower one first"),
        ("joining.silence_s=[2,1]", "joining.silence_s: must be two numbers of at least 0, the lower one first"),
        ("joining.silence_s=[0,.inf]", "joining.silence_s: must be "),
        (
            "joining.noise_dbfs=[-20,-60]",
            "joining.noise_dbfs: must be two numbers from -100 to -3, the lower one first",
        ),
        ("joining.noise_dbfs=[-60,0]", "joining.noise_dbfs: must be two numbers from -100 to -3"),
        ("joining.sahre=1", "joining.sahre: kikitori.Joining has no such argument; did you mean share?"),
        ("joining=null", "joining: must be a mapping with a _target_; choose joining=... from none, windows"),
        ("joining._target_=os.system", "joining._target_: may be kikitori.Joining"),
        ("data.joining=1", "data.joining: choose joining=windows"),
        ("data.cache_encoder_outputs=true", "data.cache_encoder_outputs: keeps the outputs of single clips"),
        ("model.timestamps=false", "joining.timestamps: is 0.5, but the model's tokenizer has no timestamps"),
    ],
)
def test_an_impossible_value_is_named_with_its_remedy(valid: dict[str, Any], setting: str, message: str) -> None:
    config = OmegaConf.create(copy.deepcopy(valid))
    key, _, value = setting.partition("=")
    OmegaConf.update(config, key, yaml.safe_load(value))
    with pytest.raises(ConfigError) as refusal:
        check_config(config)
    assert message in str(refusal.value)


def test_a_sweep_may_reach_none_at_all() -> None:
    composed("data=demo", "model=micro", "joining=windows", "joining.share=0")
    composed("data=demo", "model=micro", "joining=windows", "joining.timestamps=0")


def test_a_run_of_a_version_without_joining_is_resumed_unchanged() -> None:
    now = composed(*MICRO)
    before = copy.deepcopy(now)
    del before["joining"], before["model"]["timestamps"]
    assert changes(before, composed("data=demo", "model=micro")) == {}
    found = changes(before, composed(*MICRO, "joining=windows"))
    assert found["joining.share"] == "was null, is now 0.5"
    assert "joining.share" in changes(now, composed(*MICRO, "joining.share=0.3"))


def test_the_model_card_names_what_was_joined() -> None:
    config = OmegaConf.to_container(OmegaConf.create(composed(*MICRO, "joining=windows")))
    results = {
        "model": {"name": "micro", "window": "the full window", "window_s": 30.0},
        "data": {"language": "ja", "corpus": "demo"},
        "scores": {},
        "versions": {},
        "config": config,
        "training": {"joined": {"clips_per_example": 3.4, "seconds_per_example": 20.0}},
    }
    card = model_card(results)
    assert "50.0 % of the examples were clips joined into windows of 30 s (3.4 clips per example on average)" in card
    assert "50.0 % of the examples had timestamps and 50.0 % previous text; 2.0 % were silence or noise" in card
    del results["training"]["joined"]
    assert "joined" not in model_card(results)
