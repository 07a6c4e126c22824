from typing import Any

import pytest
import yaml

from kikitori.runs.model_card import model_card

RATES = {"clips": 5, "cer": 0.25, "cer_ci95": [0.2, 0.3], "wer": 0.5, "wer_ci95": [0.4, 0.6]}


def results(name: str | None) -> dict[str, Any]:
    optim = {"lr": 1e-5, "schedule": "linear", "warmup_steps": 50}
    data = {"full_window_share": 0.0, "global_batch_size": 16}
    return {
        "model": {"name": "whisper-base", "window": "30 s", "window_s": 30},
        "data": {"language": "ja", "corpus": "Common Voice"},
        "scores": {"before": {"test": RATES}, "after": {"test": RATES}},
        "config": {"seed": 3, "data": data, "optim": optim, "model": {"name": name, "freeze": "none"}},
        "checkpoint": {"steps": 400},
        "versions": {"kikitori": "0.1.0", "torch": "2.11.0"},
    }


@pytest.mark.parametrize(
    ("name", "base"),
    [("openai/whisper-base", "openai/whisper-base"), ("/models/base", None), ("runs/a/model", None), (None, None)],
)
def test_only_a_model_of_the_hub_is_named_as_the_base(name: str | None, base: str | None) -> None:
    _, header, _ = model_card(results(name)).split("---\n", 2)
    assert yaml.safe_load(header).get("base_model") == base


def test_the_share_of_the_full_window_is_stated_where_clips_are_padded_to_less() -> None:
    shorter = results("openai/whisper-base")
    shorter["config"]["data"]["full_window_share"] = 0.1
    sentence = "10.0 % of the training steps used the full window."
    assert sentence not in model_card(shorter)
    shorter["scores"]["after_in_full_window"] = {"test": RATES}
    assert sentence in model_card(shorter)


def test_the_card_has_the_settings_and_the_versions() -> None:
    card = model_card(results("openai/whisper-base"))
    assert "Steps 400, clips per step 16, learning rate 1e-05, schedule linear, warm-up steps 50, frozen none" in card
    assert "Made with kikitori 0.1.0, torch 2.11.0." in card
    assert "augmentation" not in card
    assert "| after training | test | 5 | 25.0 [20.0, 30.0] | 50.0 [40.0, 60.0] |" in card


def test_the_card_names_what_changed_the_training_clips() -> None:
    augmented = results("openai/whisper-base")
    augmented["config"]["augment"] = {"speed_prob": 0.3, "speed": [0.9, 1.1], "mu_law_prob": 0.05, "mp3_prob": 0.0}
    assert "augmentation of the clips (speed 30.0 %, mu-law 5.0 %), seed 3" in model_card(augmented)
    augmented["config"]["augment"] |= {"speed_prob": 0.0, "mu_law_prob": 0}
    assert "augmentation" not in model_card(augmented)


def test_the_card_of_several_languages_has_the_rates_of_each_and_says_which_is_read() -> None:
    several = results("openai/whisper-base")
    several["data"]["languages"] = ["ko", "ja"]
    several["model"]["language"] = "ko"
    of_each = {"ja": {**RATES, "clips": 3}, "ko": {**RATES, "clips": 2}}
    several["scores"] = {"after": {"test": {**RATES, "languages": of_each}}}
    card = model_card(several)
    assert yaml.safe_load(card.split("---\n", 2)[1])["language"] == ["ko", "ja"]
    rows = [line for line in card.splitlines() if line.startswith("| after training")]
    assert [row.split(" | ")[1:3] for row in rows] == [["test", "5"], ["test ja", "3"], ["test ko", "2"]]
    assert "**Languages.** Trained on ko, ja," in card
    assert "takes `language=`, by default ko." in card
    assert "**Languages.**" not in model_card(results(None))
