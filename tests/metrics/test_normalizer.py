import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kikitori.metrics.languages import LANGUAGES
from kikitori.metrics.normalizer import (
    INVISIBLE,
    UNSPACED,
    normalise,
    reading,
    segmenter,
    split_words,
    text_rules,
)

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
    ("葛\U000e0100城市の辻\U000e0101さん", "葛城市の辻さん", "variation selectors of kanji are invisible"),
    ("ありがとう❤\ufe0f", "ありがとう", "so are those of emoji"),
    ("5\ufe0f\u20e3番", "5番", "a keycap is the digit in it"),
    ("👨\u200d👩\u200d👧は家族", "は家族", "joined emoji are symbols"),
    ("カ\u3164\u115f\uffa0メ", "カメ", "fillers are invisible"),
    ("ラ－メン ラ−メン ラ‐メン ラ―メン ラ-メン ﾗｰﾒﾝ", "ラーメン" * 6, "a dash after a katakana is a long vowel"),
    ("コ―ヒ―", "コーヒー", "also at the end"),
    ("わ〜い、わ～い", "わーいわーい", "so is a wave dash after a kana"),
    ("すご〜〜いね〜", "すごーーいねー", "one for each"),
    ("お母さ－ん", "お母さーん", "and a dash between two hiragana"),
    ("東京〜大阪、１０〜２０", "東京大阪1020", "elsewhere they are punctuation"),
    ("それは——つまり、ハロ――と言う", "それはつまりハロと言う", "two dashes are"),
    ("ジャン-ポール、アッ-と", "ジャンポールアッと", "no vowel is long after ン or ッ"),
]


@pytest.mark.parametrize(("text", "expected", "why"), GOLDEN)
def test_japanese_normalisation_follows_the_golden_table(text: str, expected: str, why: str) -> None:
    assert normalise(text, "ja") == expected, why


def test_other_languages_keep_single_spaces() -> None:
    assert normalise("  Guten Tag,\tWELT! ", "de") == "guten tag welt"


# Kana, what is typed for a long vowel, and marks, in any order.
TANGLED = st.text("あアンッー-−―〜～゛\u3099\ufe00\u200d\u20e3 。a", max_size=12)


@given(st.text() | TANGLED)
def test_normalisation_is_idempotent(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(st.text() | TANGLED)
def test_width_and_composition_make_no_difference(text: str) -> None:
    assert normalise(unicodedata.normalize("NFKC", text)) == normalise(text)


@given(st.text("葛辻カか5a❤"), st.data())
def test_invisible_characters_make_no_difference(text: str, data: st.DataObject) -> None:
    invisible = "\u034f\u180b\u200b\u200d\u2060\ufe0e\ufe0f\ufeff\U000e0020\U000e0100\U000e01ef"
    assert all(unicodedata.category(c) == "Cf" or INVISIBLE.match(c) for c in invisible)
    strewn = "".join(character + data.draw(st.text(invisible, max_size=2)) for character in text)
    assert normalise(strewn) == normalise(text)


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


@pytest.mark.parametrize(
    ("given", "rules"),
    [
        *(("zh-CN", ("zh", "characters")), ("zh_HK", ("zh", "characters")), ("Thai", ("th", "characters"))),
        *(("sv-SE", ("sv", "white space")), ("ga-IE", ("ga", "white space")), ("EN", ("en", "white space"))),
    ],
)
def test_rules_belong_to_a_language_however_it_is_written(given: str, rules: tuple[str, str]) -> None:
    found = text_rules(given)
    assert (found["language"], found["segmenter"]) == rules
    text = "你好, 世界 Hello World"
    assert normalise(text, given) == normalise(text, rules[0])
    assert split_words(text, given) == split_words(text, rules[0])


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_each_language_has_words(language: str) -> None:
    assert split_words("ab cd", language) == (
        ["ab", "cd"] if language == "ja" or language not in UNSPACED else list("abcd")
    )


# A line has spellings of one reading.
SAME = """
わたし 私 ワタシ ﾜﾀｼ
おふろ お風呂
ごはん ご飯 御飯
こども 子供 子ども
鰻 うなぎ ウナギ
明日 あす
といって と言って
いう 言う
ください 下さい
できる 出来る
行った いった
引越し 引っ越し 引越
三百円 300円 ３００円 三〇〇円
二十日 20日
三本 3本
鉛筆が三本ある 鉛筆が3本ある
ろく 六 6 ６
三時 3時
一人 1人 ひとり
一つ 1つ ひとつ
一か月 1ヶ月 一ヶ月 1カ月 １ヵ月
一万円 1万円 10,000円
二〇二六年 2026年 二千二十六年
國學院 国学院
渡邊 渡辺
ヴァイオリン バイオリン
コンピュータ コンピューター
"""
# A line has words of different readings.
OTHER = """
犬 猫
三百円 400円
食べます 食べました 食べれます
お金 お米
一人 二人
三本 四本
行った 来た
"""


@pytest.mark.parametrize("spellings", SAME.split("\n")[1:-1])
def test_spellings_of_the_same_words_have_one_reading(spellings: str) -> None:
    assert len({reading(text) for text in spellings.split()}) == 1


@pytest.mark.parametrize("texts", OTHER.split("\n")[1:-1])
def test_other_words_have_other_readings(texts: str) -> None:
    assert len({reading(text) for text in texts.split()}) == len(texts.split())


@given(st.text() | st.text("三百千円本日私わたしーアa1。", max_size=12))
def test_the_reading_depends_on_the_normalised_text_only(text: str) -> None:
    assert reading(normalise(text)) == reading(text)
    assert reading("") == reading("。") == ""
