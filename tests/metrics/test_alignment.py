from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kikitori.metrics.alignment import error_types, spans, word_errors
from kikitori.metrics.error_rates import score_clips

JAPANESE = st.text("あいうえおがー。、 aA", max_size=12)


def test_spans_name_the_edit_of_each_character() -> None:
    assert spans("音楽がすき", "音学すきだ") == [
        ("equal", "音", "音"),
        ("substitute", "楽", "学"),
        ("delete", "が", ""),
        ("equal", "すき", "すき"),
        ("insert", "", "だ"),
    ]


@given(JAPANESE, JAPANESE)
def test_spans_join_to_both_texts(reference: str, hypothesis: str) -> None:
    parts = spans(reference, hypothesis)
    assert "".join(part.reference for part in parts) == reference
    assert "".join(part.hypothesis for part in parts) == hypothesis
    assert all((part.reference == part.hypothesis) == (part.kind == "equal") for part in parts)


@given(st.lists(st.tuples(JAPANESE, JAPANESE), max_size=5), st.sampled_from(["ja", "de"]))
def test_errors_add_up_to_the_edits_of_the_score(pairs: list[tuple[str, str]], language: str) -> None:
    references, hypotheses = [list(texts) for texts in zip(*pairs, strict=True)] if pairs else ([], [])
    errors = error_types(references, hypotheses, language)
    scores = score_clips(references, hypotheses, language)
    assert sum(count for *_, count in errors["rows"]) == sum(score.cer_edits for score in scores)
    assert sum(errors["totals"].values()) == sum(score.cer_edits for score in scores)
    assert errors["characters"] == sum(score.cer_length for score in scores)


def test_errors_are_counted_on_normalised_text_most_frequent_first() -> None:
    found: dict[str, Any] = error_types(["はい。", "パン", "パイ"], ["はい", "バン", "バイト"], "ja")
    assert found == {
        "rows": [("substitute", "パ", "バ", 2), ("insert", "", "ト", 1)],
        "totals": {"substitute": 2, "delete": 0, "insert": 1},
        "characters": 6,
    }


def test_adjacent_wrong_words_are_one_error() -> None:
    references = ["わたしは枝豆を食べた。", "わたしは水を飲んだ"]
    found = word_errors(references, ["私はサラダを食べた", "私は水を飲んだ、よ"], "ja")
    assert found == [("わたし", "私", 2), ("", "よ", 1), ("枝豆", "サラダ", 1)]
    assert word_errors(["a b c d"], ["a x d"], "en") == [("b c", "x", 1)]
