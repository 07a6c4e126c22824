import pytest

from kikitori.demo.differences import DIFFERENT, IGNORED, MISSING, SAME, Rows, confidences, parts
from kikitori.inference.confidence import Token
from kikitori.inference.segments import Piece


def kinds(text: str, other: str | None) -> list[tuple[str, str]]:
    return [part[:2] for part in parts(text, [None] * len(text), other, "ja")]


@pytest.mark.parametrize(
    ("text", "other", "expected"),
    [
        ("ピザと水", "ピザと水", [("ピザと水", SAME)]),
        ("ピザと水", None, [("ピザと水", SAME)]),
        ("ピザと水", "うどんと水", [("ピザ", DIFFERENT), ("と水", SAME)]),
        ("ピザと水", "ピザと冷たい水", [("ピザと", SAME), ("冷たい", MISSING), ("水", SAME)]),
        ("はい、水?", "はい水。", [("はい", SAME), ("、", IGNORED), ("水", SAME), ("?", IGNORED)]),
        ("水", "", [("水", DIFFERENT)]),
        ("", "水", [("水", MISSING)]),
        ("", "", []),
    ],
)
def test_what_differs_from_another_text(text: str, other: str | None, expected: list[tuple[str, str]]) -> None:
    assert kinds(text, other) == expected


def test_only_the_beginning_of_an_endless_text_is_compared() -> None:
    text = "はい" * 5000
    assert "".join(part for part, kind in kinds(text, "はい" * 4000) if kind == SAME) == text


def test_a_text_is_divided_where_its_confidence_changes() -> None:
    pieces = [piece(0, 1, "ピザと", (Token("ピザ", 0.9), Token("と", 0.25))), piece(1, 2, ""), piece(2, 3, "water")]
    text, known = confidences(pieces, " ", "ja")
    assert text == "ピザと water"
    assert known == [0.9, 0.9, 0.25, *[None] * 6]
    assert parts(text, known, None, "ja") == [("ピザ", SAME, 0.9), ("と", SAME, 0.25), (" water", SAME, None)]


def test_a_probability_that_is_no_number_is_unknown() -> None:
    assert confidences([piece(0, 1, "水", (Token("水", float("nan")),))], "", "ja")[1] == [None]


def test_a_word_is_as_sure_as_its_least_sure_token() -> None:
    tokens = (Token("un", 0.9), Token("sure", 0.3), Token(" word", 0.8))
    text, known = confidences([piece(0, 1, "unsure word", tokens)], " ", "en")
    assert parts(text, known, None, "en") == [("unsure", SAME, 0.3), (" word", SAME, 0.8)]


def piece(start_s: float, end_s: float, text: str = "水", tokens: tuple[Token, ...] = ()) -> Piece:
    return Piece(start_s, end_s, text, "", tokens)


def test_a_row_ends_where_all_models_pause() -> None:
    rows = Rows(2)
    assert rows.add(0, piece(0, 10)) is None
    assert rows.add(1, piece(0, 4)) is None
    row = rows.add(1, piece(4, 10.2))
    assert row
    assert [[p.end_s for p in pieces] for pieces in row] == [[10], [4, 10.2]]
    assert rows.add(0, piece(10, 30)) is None
    assert rows.rest() == [[piece(10, 30)], []]
    assert rows.rest() == [[], []]


def test_a_row_ends_where_models_never_pause_together() -> None:
    rows, found = Rows(2), []
    for number in range(40):
        for model, shift in ((0, 0.0), (1, 2.5)):
            found.append(rows.add(model, piece(5 * number + shift, 5 * number + 5 + shift)))
    ended = [row for row in found if row]
    assert len(ended) == 3
    assert sum(len(pieces) for row in [*ended, rows.rest()] for pieces in row) == 80


def test_one_model_alone_has_a_row_for_each_piece() -> None:
    assert Rows(1).add(0, piece(0, 3)) == [[piece(0, 3)]]
