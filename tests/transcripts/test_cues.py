"""Subtitles are short, divided where people pause, and cover the pieces they are made of."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from kikitori.inference.segments import Piece
from kikitori.transcripts.cues import COLUMNS, LONGEST_S, SHORTEST_S, Cue, cues_of

WALK = (
    "今日はとても良い天気ですから、散歩に行きましょうと母が言いましたが、父は家で本を読みたいと答えたので妹だけが"
    "出かけました。「本当ですか？」と聞くと、はい、と答えた。"
)


def test_a_short_piece_is_one_subtitle_and_silence_none() -> None:
    pieces = [Piece(0, 3, "犬と猫。", ""), Piece(3, 9, "", "no speech"), Piece(9, 12, "はい。\n\nはい。", "")]
    assert cues_of(pieces, "ja") == [Cue(0, 3, "犬と猫。"), Cue(9, 12, "はい。 はい。")]


def test_a_long_piece_is_divided_at_sentences_then_at_commas_and_then_between_phrases() -> None:
    cues = cues_of([Piece(10, 24, WALK, "")], "ja")
    assert [cue.text for cue in cues] == [
        "今日はとても良い天気ですから、\n散歩に行きましょうと母が言いましたが、",
        "父は家で本を読みたいと\n答えたので妹だけが出かけました。",
        "「本当ですか？」と聞くと、はい、と答えた。",
    ]
    assert cues[0].start_s == 10
    assert cues[-1].end_s == pytest.approx(24)
    assert [round(cue.end_s - cue.start_s) for cue in cues] == [6, 5, 3]


def test_words_with_spaces_stay_whole() -> None:
    text = "The old man is snoring and he bumped his head on the bed and could not get up at 3.15 a.m. in time"
    cues = cues_of([Piece(0, 12, text, "")], "en")
    assert " ".join(" ".join(cue.text.split()) for cue in cues) == text
    assert len(cues) == 2
    assert all(cue.text.count("\n") <= 1 for cue in cues)


def test_sentences_that_are_short_share_a_subtitle() -> None:
    assert [cue.text for cue in cues_of([Piece(0, 10, "はい。" * 4, "")], "ja")] == ["はい。はい。"] * 2


def test_a_piece_without_any_time_is_shown_for_a_moment_and_none_overlaps() -> None:
    first, second, third = cues_of([Piece(1, 1, "一", ""), Piece(1, 2, "二", ""), Piece(1.5, 4, "三", "")], "ja")
    assert (first.start_s, first.end_s) == (1, 1 + SHORTEST_S)
    assert (second.start_s, second.end_s) == (1 + SHORTEST_S, 2)
    assert (third.start_s, third.end_s) == (2, 4)


@given(
    text=st.text(st.sampled_from("あいう犬猫アー。、？！」 「abc.,-\n"), min_size=0, max_size=200),
    seconds=st.floats(0.1, 60),
    language=st.sampled_from(["ja", "en", "zh"]),
)
def test_any_text_is_kept_and_the_times_ascend(text: str, seconds: float, language: str) -> None:
    cues = cues_of([Piece(5, 5 + seconds, text, "")], language)
    assert "".join("".join(cue.text.split()) for cue in cues) == "".join(text.split())
    assert all(a.end_s <= b.start_s for a, b in pairwise(cues))
    assert all(cue.start_s < cue.end_s for cue in cues)
    assert all(line.strip() for cue in cues for line in cue.text.split("\n"))
    assert all(cell_len(cue.text) <= 2 * COLUMNS + 2 for cue in cues)
    assert all(cue.end_s - cue.start_s <= LONGEST_S or len(cue.text) == 1 for cue in cues)
