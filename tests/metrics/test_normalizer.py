import pytest
from hypothesis import given
from hypothesis import strategies as st

from kikitori.metrics.normalizer import normalise, segmenter, split_words

GOLDEN = [
    # text, normalised, why
    ("わたしは音楽がすきです。", "わたしは音楽がすきです", "punctuation is removed"),
    ("か\u3099", "が", "a decomposed kana is composed"),
    ("か゛", "が", "so is a kana followed by a separate voicing mark"),
    ("ｶﾞｷﾞ", "ガギ", "half-width kana become full-width"),
    ("ＡＢＣ１２３", "abc123", "full-width letters and digits become half-width, lower case"),
    ("パン、バン、ハン", "パンバンハン", "voicing marks are part of a letter and stay"),
    ("コーヒー", "コーヒー", "the long vowel is a letter"),
    ("人々・時々", "人々時々", "the repetition mark is a letter, the middle dot is not"),
    ("「はい」と　言った！？", "はいと言った", "brackets, ideographic space and full-width marks are removed"),
    ("50％〜60%", "5060", "percent and wave dash are symbols"),
    ("㍻３１年①", "平成31年1", "compatibility characters are spelt out"),
    ("〇〇さん", "〇〇さん", "the ideographic zero is a number"),
    ("a\u200bb", "ab", "invisible characters are removed"),
    ("……", "", "a transcript of punctuation only is empty"),
]


@pytest.mark.parametrize(("text", "expected", "why"), GOLDEN)
def test_japanese_normalisation_follows_the_golden_table(text: str, expected: str, why: str) -> None:
    assert normalise(text, "ja") == expected, why


def test_other_languages_keep_single_spaces() -> None:
    assert normalise("  Guten Tag,\tWELT! ", "de") == "guten tag welt"


@given(st.text())
def test_normalisation_is_idempotent(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_a_language_without_spaces_counts_characters_as_words() -> None:
    assert normalise("你好 吗？", "zh") == "你好吗"
    assert split_words("你好 吗", "zh") == ["你", "好", "吗"]
    assert normalise("می\u200cخواهم", "fa") == "میخواهم"


def test_words_are_those_of_sudachi_in_mode_c() -> None:
    assert split_words("国家公務員です。") == ["国家公務員", "です", "。"]


@given(st.text(alphabet="私は音楽がすきですー々ガパ。、 0a", max_size=30))
def test_words_contain_everything_except_white_space(text: str) -> None:
    assert "".join(split_words(text)) == "".join(text.split())


def test_words_of_other_languages_are_split_at_white_space() -> None:
    assert split_words("guten tag", "de") == ["guten", "tag"]


def test_the_segmenter_names_its_dictionary() -> None:
    assert "sudachidict-core 20" in segmenter("ja")
