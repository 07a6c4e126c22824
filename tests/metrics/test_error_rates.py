from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kikitori.metrics.error_rates import (
    change,
    clip_score,
    corpus_rate,
    edits_and_lengths,
    prediction,
    rescored,
    score,
    score_clips,
    summarise,
)

# Counted by hand: reference, hypothesis, (edits, length) of CER, WER, raw CER, raw WER.
COUNTED = [
    # One character of eleven is substituted; 音楽 is one of six words (わたし は 音楽 が すき です).
    ("わたしは音楽がすきです。", "わたしは音学がすきです。", (1, 11), (1, 6), (1, 12), (1, 7)),
    # Only a full stop is missing: no error on normalised text; on raw text one of twelve characters, of seven words.
    ("わたしは音楽がすきです。", "わたしは音楽がすきです", (0, 11), (0, 6), (1, 12), (1, 7)),
    # Two insertions.
    ("はい", "はいはい", (2, 2), (1, 1), (2, 2), (1, 1)),
    # Everything is deleted.
    ("犬", "", (1, 1), (1, 1), (1, 1), (1, 1)),
    # An empty reference and a hypothesis: edits without length.
    ("。", "犬", (1, 0), (1, 0), (1, 1), (1, 1)),
]


@pytest.mark.parametrize(("reference", "hypothesis", "cer", "wer", "cer_raw", "wer_raw"), COUNTED)
def test_edits_equal_those_counted_by_hand(reference, hypothesis, cer, wer, cer_raw, wer_raw) -> None:
    (score,) = score_clips([reference], [hypothesis], "ja")
    assert (score.cer_edits, score.cer_length) == cer
    assert (score.wer_edits, score.wer_length) == wer
    assert (score.cer_raw_edits, score.cer_raw_length) == cer_raw
    assert (score.wer_raw_edits, score.wer_raw_length) == wer_raw


def test_a_corpus_rate_is_all_edits_over_all_lengths_not_a_mean_of_rates() -> None:
    scores = score_clips(["あ", "いうえおかきくけこ"], ["ん", "いうえおかきくけこ"], "ja")
    assert corpus_rate(edits_and_lengths(scores, "cer")) == pytest.approx(1 / 10)


def test_a_decomposed_kana_is_no_error() -> None:
    (score,) = score_clips(["がっこう"], ["か\u3099っこう"], "ja")
    assert score.cer_edits == 0
    assert score.cer_raw_edits == 2


def test_the_interval_contains_the_rate_and_shrinks_with_more_clips() -> None:
    few = summarise(score_clips(["あいう", "えおか"] * 5, ["あいう", "えおん"] * 5, "ja"))
    many = summarise(score_clips(["あいう", "えおか"] * 500, ["あいう", "えおん"] * 500, "ja"))
    low, high = few["cer_ci95"]
    assert low <= few["cer"] <= high
    assert many["cer_ci95"][1] - many["cer_ci95"][0] < (high - low) / 5
    assert few["clips"] == 10


def test_the_paired_interval_is_narrower_than_the_rates_own_when_all_clips_improve_alike() -> None:
    references = ["あ" * n for n in range(2, 42)]
    before = score_clips(references, ["ん" * 2 + r[2:] for r in references], "ja")
    after = score_clips(references, ["ん" + r[1:] for r in references], "ja")
    gain = change(before, after)
    own = summarise(before)["cer_ci95"]
    assert gain["cer"] < 0
    assert gain["cer_ci95"][1] < 0
    assert gain["cer_ci95"][1] - gain["cer_ci95"][0] < own[1] - own[0]


def test_no_clips_give_no_rate_and_no_error() -> None:
    assert summarise([])["cer"] == 0.0


@given(st.lists(st.text("あいうえお", min_size=1, max_size=8), min_size=1, max_size=6))
def test_a_perfect_transcript_has_no_edits(texts: list[str]) -> None:
    summary = summarise(score_clips(texts, texts, "ja"))
    assert summary["cer"] == summary["wer"] == summary["cer_raw"] == summary["wer_raw"] == 0
    assert summary["cer_ci95"] == [0, 0]


def test_spellings_are_errors_of_the_cer_and_not_of_the_readings_cer() -> None:
    rates = score(["私は三百円のご飯を食べた。"], ["わたしは300円のごはんをたべた"], "ja")
    assert rates["cer"] > 0.5
    assert rates["cer_reading"] == 0
    assert score(["私は犬だ"], ["わたしは猫だ"])["cer_reading"] == pytest.approx(2 / len("ワタクシハイヌダ"))


def test_only_japanese_has_readings() -> None:
    (clip,) = score_clips(["你好，世界。"], ["你好世界"], "zh-CN")
    assert "cer_reading" not in summarise([clip])
    assert not any("reading" in key for key in prediction("a", "你好", "你好", clip))
    assert "cer_reading" not in summarise([])


@pytest.mark.parametrize("language", ["zh", "zh-CN", "zh_TW", "Chinese", "yue", "zh-HK"])
def test_chinese_words_are_characters_and_punctuation_is_none(language: str) -> None:
    (clip,) = score_clips(["你好，世界。"], ["你好世間"], language)
    assert (clip.cer_edits, clip.cer_length, clip.wer_edits, clip.wer_length) == (1, 4, 1, 4)


def test_invisible_characters_and_typed_long_vowels_are_no_errors() -> None:
    (clip,) = score_clips(["葛\U000e0100城市のラ－メン、ありがとう❤\ufe0f"], ["葛城市のラーメンありがとう"], "ja")
    assert (clip.cer_edits, clip.wer_edits) == (0, 0)


def test_a_language_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'japnese' is no language; did you mean ja \(japanese\)"):
        score(["はい"], ["はい"], "japnese")


MIXED = [
    ("ja", "赤い犬が走る", "赤い猫が走る"),
    ("ko", "빨간 개", "빨간 개"),
    ("ja", "水", "水"),
    ("en", "a red dog", "a dog"),
]


def test_each_clip_is_scored_by_the_rules_of_its_language_and_rates_are_also_of_each() -> None:
    languages, references, hypotheses = zip(*MIXED, strict=True)
    scores = score_clips(references, hypotheses, languages)
    for (language, *pair), counts in zip(MIXED, scores, strict=True):
        assert [counts] == score_clips(*([text] for text in pair), language)
    # Sudachi's words of Japanese, white space elsewhere.
    assert [score.wer_length for score in scores] == [4, 2, 1, 3]
    assert "languages" not in summarise(scores)
    stated = [replace(score, language=code) for score, code in zip(scores, languages, strict=True)]
    summary = summarise(stated)
    # All edits of all clips; readings are of Japanese alone.
    assert summary["wer"] == 2 / 10
    assert "cer_reading" not in summary
    for language in ("en", "ja", "ko"):
        alone = [score for score in scores if languages[scores.index(score)] == language]
        assert summary["languages"][language] == summarise(alone)
    assert summary["languages"]["ja"]["cer_reading"] > 0
    changes = change(stated, [replace(score, cer_edits=0) for score in stated])["languages"]
    assert {code: rates["cer"] for code, rates in changes.items()} == {"en": -4 / 9, "ja": -1 / 7, "ko": 0}


def test_rows_are_scored_again_in_the_languages_that_they_name() -> None:
    languages, references, hypotheses = zip(*MIXED, strict=True)
    scores = [
        replace(score, language=code)
        for score, code in zip(score_clips(references, hypotheses, languages), languages, strict=True)
    ]
    rows = list(map(prediction, "abcd", references, hypotheses, scores))
    assert [row["language"] for row in rows] == list(languages)
    assert [clip_score(row) for row in rows] == scores
    old = [{**row, "wer_edits": 9} for row in rows]
    assert rescored(old, "ja", several=True) == (scores, rows)
    # A translation is English, whatever was said.
    english, _ = rescored(old, "en")
    assert [score.wer_length for score in english] == [1, 2, 1, 3]
    assert [score.language for score in english] == list(languages)
