"""Text that does not fit its audio is found, and natural text is not."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.inference.checks import (
    CUT,
    LITTLE,
    MIN_DENSITY,
    NO_SPEECH_FOUND,
    NONE,
    REPEATED,
    examine,
    is_silent,
    speech_s,
    without_repetition,
)
from kikitori.inference.generate import Generated


def noise(seconds: float, rms: float = 0.1) -> Tensor:
    return rms * torch.randn(round(seconds * SAMPLE_RATE), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("text", "reduced"),
    [
        ("ん" * 225, "ん"),
        ("スタッフの上に、" + " 上に、" * 33, "スタッフの上に、 上に、"),
        ("おはよう。" + "です。" * 20 + "またね。", "おはよう。です。またね。"),
        ("thank you. " * 20, "thank you."),
        ("今日は、" + "カレーと紅茶を、" * 5 + "カレー", "今日は、カレーと紅茶を、カレー"),
    ],
)
def test_a_repetition_is_reduced_to_one_unit(text: str, reduced: str) -> None:
    assert without_repetition(text) == reduced


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "ん",
            "はいはいはいはいはい",
            "いやいやいや、だめだめだめ。",
            "no, no, no, no, no, no!",
            "ha ha ha ha ha ha",
        ),
        *("090-0000-0000", "一、二、三、四、五、六、七、八、九、十。", "3.14159265358979", "100000000000円", "………………"),
    ],
)
def test_what_people_repeat_stays(text: str) -> None:
    assert without_repetition(text) == text


@given(text=st.text(alphabet="あいうえ、 ab", max_size=60), unit=st.text(alphabet="かきくけ", min_size=1, max_size=5))
def test_reducing_ends_every_long_repetition_and_never_adds_text(text: str, unit: str) -> None:
    reduced = without_repetition(text + unit * 40)
    assert len(reduced) < len(text) + 40 * len(unit)
    assert unit * 4 not in reduced or len(set(unit)) < len(unit)


def test_silence_is_below_the_level_of_data_silence_dbfs() -> None:
    assert is_silent(torch.zeros(0))
    assert is_silent(torch.full((800,), 10 ** (-51 / 20)))
    assert not is_silent(torch.full((800,), 10 ** (-49 / 20)))


def test_speech_is_what_is_about_as_loud_as_the_loudest_parts() -> None:
    recording = torch.cat([noise(2.0), noise(3.0, rms=0.001), noise(1.0, rms=0.05)])
    assert speech_s(recording) == pytest.approx(3.0, abs=0.15)
    assert speech_s(noise(2.0, rms=0.0005)) == speech_s(torch.zeros(100)) == 0


@pytest.mark.parametrize(
    ("generated", "expected"),
    [
        (Generated("今日は寒いですね。", False, 0.1, -0.3), ("今日は寒いですね。", NONE)),
        (Generated("水", False, 0.8, -2.8), ("", NO_SPEECH_FOUND)),
        (Generated("ご視聴ありがとうございました", False, 0.82, -0.4), ("", NO_SPEECH_FOUND)),
        (Generated("部屋はあまり広くありません", False, 0.6, -0.3), ("部屋はあまり広くありません", NONE)),
        (Generated("ん" * 165, True, 0.7, -0.1), ("", NO_SPEECH_FOUND)),
        (Generated("ん" * 165, True, 0.2, -0.1), ("ん", REPEATED)),
        (Generated("今日は" * 8, True, 0.2, -0.1), ("今日は", REPEATED)),
        (Generated("今日は寒いですね。", True, 0.2, -0.1), ("今日は寒いですね。", CUT)),
        (Generated("今日", False, 0.1, -0.3), ("今日", LITTLE)),
        (Generated("", False, 0.1, -0.3), ("", LITTLE)),
        # A beam search gives no probabilities.
        (Generated("今日は寒いですね。", False), ("今日は寒いですね。", NONE)),
    ],
)
def test_doubts_about_four_seconds_of_speech(generated: Generated, expected: tuple[str, str]) -> None:
    assert examine(generated, noise(4.0), MIN_DENSITY) == expected


def test_a_short_word_is_not_too_little_and_sparse_training_texts_allow_little() -> None:
    assert examine(Generated("", False, 0.1, -0.3), noise(1.0), MIN_DENSITY) == ("", NONE)
    assert examine(Generated("はい", False, 0.1, -0.3), noise(4.0), min_density=0.01) == ("はい", NONE)
