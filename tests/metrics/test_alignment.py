from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kikitori.metrics.alignment import error_types, spans
from kikitori.metrics.error_rates import score_clips

JAPANESE = st.text("あいうえおがー。、 aA", max_size=12)


def test_spans_name_what_became_of_each_character() -> None:
    assert spans("音楽がすき", "音学すきだ") == [
        ("equal", "音", "音"),
        ("substitute", "楽", "学"),
        ("delete", "が", ""),
        ("equal", "すき", "すき"),
        ("insert", "", "だ"),
    ]


@given(JAPANESE, JAPANESE)
def test_spans_make_both_texts_again(reference: str, hypothesis: str) -> None:
    pieces = spans(reference, hypothesis)
    assert "".join(piece.reference for piece in pieces) == reference
    assert "".join(piece.hypothesis for piece in pieces) == hypothesis
    assert all((piece.reference == piece.hypothesis) == (piece.kind == "equal") for piece in pieces)


@given(st.lists(st.tuples(JAPANESE, JAPANESE), max_size=5), st.sampled_from(["ja", "de"]))
def test_errors_add_up_to_the_edits_that_are_scored(pairs: list[tuple[str, str]], language: str) -> None:
    references, hypotheses = [list(texts) for texts in zip(*pairs, strict=True)] if pairs else ([], [])
    errors = error_types(references, hypotheses, language)
    scores = score_clips(references, hypotheses, language)
    assert sum(count for *_, count in errors["rows"]) == sum(score.cer_edits for score in scores)
    assert sum(errors["totals"].values()) == sum(score.cer_edits for score in scores)
    assert errors["characters"] == sum(score.cer_length for score in scores)


def test_errors_are_counted_on_normalised_text_commonest_first() -> None:
    found: dict[str, Any] = error_types(["はい。", "パン", "パイ"], ["はい", "バン", "バイト"], "ja")
    assert found == {
        "rows": [("substitute", "パ", "バ", 2), ("insert", "", "ト", 1)],
        "totals": {"substitute": 2, "delete": 0, "insert": 1},
        "characters": 6,
    }
