"""Figures of rows by hand, and the verdict on a change."""

from typing import Any

import pytest

from kikitori.config.validation import GUARDS_OWN
from kikitori.guard.figures import certainly_worse, compare, count, is_stamped, place, timestamp_facts
from kikitori.guard.recordings import OWN, STOCK
from kikitori.guard.table import guard_legend, guard_rows
from kikitori.metrics.error_rates import score_clips


def row(name: str, recording: str, hypothesis: str, reference: str = "", **more: Any) -> dict[str, Any]:
    facts = {"set": name, "recording": recording, "reading": OWN, "language": "ja", "seconds": 10.0}
    return {**facts, "hypothesis": hypothesis, "reference": reference, **more}


def figure(figures: list[dict[str, Any]], measure: str) -> dict[str, Any]:
    (found,) = (row for row in figures if row["measure"] == measure)
    return found


def test_text_of_silence_is_counted_in_characters_per_minute() -> None:
    base = count([row("silence", "1", ""), row("silence", "2", "。")])
    tuned = count([row("silence", "1", "はい。"), row("silence", "2", "ご視聴")])
    found, of_all = (row for row in compare(base, tuned) if row["measure"] == "invented")
    # Punctuation is none: 2 and 3 characters in 20 s.
    assert (found["base"], found["tuned"], found["change"]) == (0, 15, 15)
    assert found["change_ci95"] == pytest.approx([12, 18])
    # Two recordings agree by chance in half of the cases.
    assert (found["p"], found["verdict"]) == (0.5, "")
    assert (found["set"], of_all["set"], of_all["tuned"]) == ("no speech", "silence", 15)


def test_sounds_without_speech_and_joined_recordings_are_also_counted_together() -> None:
    def rows(text: str) -> list[dict[str, Any]]:
        sounds = [row(name, n, text) for name in ("silence", "tone", "pink noise") for n in "12"]
        return sounds + [row(f"joined {s} s", n, "あい" + text, "あい") for s in (60, 120) for n in "123"]

    found = {r["set"]: r for r in compare(count(rows("")), count(rows("はい"))) if r["measure"] != "loops"}
    assert (found["no speech"]["recordings"], found["joined"]["recordings"]) == (6, 6)
    assert found["no speech"]["p"] == found["joined"]["p"] == 2 / 2**6
    assert [name for name, r in found.items() if r["verdict"] == "worse"] == ["joined", "no speech"]
    assert found["no speech"]["tuned"] == found["tone"]["tuned"] == 12


def test_joined_recordings_of_the_same_clips_are_not_counted_together() -> None:
    def rows(text: str) -> list[dict[str, Any]]:
        own = [row("joined 60 s", n, "あい" + text, "あい") for n in "12"]
        return own + [row("joined 120 s", n, "あい" + text, "あい", repeats=True) for n in "1234"]

    found = {r["set"]: r for r in compare(count(rows("")), count(rows("はい"))) if r["measure"] == "cer"}
    # Six that agree would have a verdict.
    assert {name: r["recordings"] for name, r in found.items()} == {"joined": 2, "joined 60 s": 2, "joined 120 s": 4}
    assert {r["verdict"] for r in found.values()} == {""}


def test_of_many_figures_those_that_are_worse_by_chance_are_not_certainly_worse() -> None:
    def figures(*values: float, recordings: int = 16) -> list[dict[str, Any]]:
        return [{"p": p, "recordings": recordings, "verdict": "worse" if p <= 0.05 else ""} for p in values]

    assert certainly_worse(figures(0.04)) == figures(0.04)
    # Holm: 0.001 <= 0.05 / 4, but 0.02 > 0.05 / 3.
    assert certainly_worse(figures(0.001, 0.02, 0.3, 1)) == figures(0.001)
    assert certainly_worse(figures(0.02, 0.03, 0.3, 1)) == []
    # Of four recordings no figure can have a verdict, so that it does not count.
    assert certainly_worse(figures(0.04) + figures(*[0.125] * 9, recordings=4)) == figures(0.04)
    better = [{"p": 0.001, "recordings": 16, "verdict": "better"}]
    assert certainly_worse(better + figures(0.04)) == figures(0.04)


def test_error_rates_are_all_edits_over_all_lengths() -> None:
    texts = [(str(n), "あいうえお") for n in range(6)]
    base = count([row("clips", name, text[:-1] + "ん", text) for name, text in texts])
    tuned = count([row("clips", name, text, text) for name, text in texts])
    found = figure(compare(base, tuned), "cer")
    assert (found["base"], found["tuned"], found["verdict"]) == (20, 0, "better")


def test_a_translation_is_scored_as_english_whatever_was_spoken() -> None:
    texts = {"hypothesis": "it is a colour", "reference": "It's a color."}
    counts = count([row("clips", "1", **texts, text_language="en", detected="ja")])
    (score,) = score_clips([texts["reference"]], [texts["hypothesis"]], "en")
    assert counts["clips", OWN, "cer"].tolist() == [[score.cer_edits, score.cer_length]]
    assert counts["clips", OWN, "detected"].tolist() == [[1, 1]]


def test_a_change_whose_interval_holds_zero_has_no_verdict() -> None:
    base = count([row("silence", str(i), "はい" if i % 2 else "") for i in range(10)])
    tuned = count([row("silence", str(i), "" if i % 2 else "はい") for i in range(10)])
    assert [r["verdict"] for r in compare(base, tuned) if r["measure"] == "invented"] == ["", ""]


def test_a_higher_share_of_detected_languages_is_better() -> None:
    base = count([row("clips", str(i), "あ", "あ", detected="zh") for i in range(6)])
    tuned = count([row("clips", str(i), "あ", "あ", detected="ja") for i in range(6)])
    found = figure(compare(base, tuned), "detected")
    assert (found["base"], found["tuned"], found["verdict"]) == (0, 100, "better")


def test_repetitions_are_counted() -> None:
    base, tuned = (count([row("tone", n, text) for n in "123456"]) for text in ("", "ん" * 225))
    found = figure(compare(base, tuned), "loops")
    assert (found["base"], found["tuned"], found["verdict"]) == (0, 100, "worse")


def test_a_text_that_repeats_itself_as_its_reference_does_is_right() -> None:
    same = [row("joined 60 s", "1", "今日は晴れです" * 6, "今日は晴れです" * 6)]
    assert figure(compare(count(same), count(same)), "loops")["tuned"] == 0


def test_a_row_of_dots_is_no_repetition() -> None:
    found = figure(compare(count([row("silence", "1", "")]), count([row("silence", "1", "。" * 99)])), "loops")
    assert (found["tuned"], found["verdict"]) == (0, "")


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [([], False), ([0.0], False), ([0.0, 0.0], False), ([0.0, 2.5], True), ([0.0, 2.5, 2.0, 4.0], False)],
)
def test_a_text_is_stamped_if_it_has_an_end_and_never_goes_back(stamps: list[float], expected: bool) -> None:
    assert is_stamped(stamps) is expected


def test_joints_are_found_within_half_a_second() -> None:
    base = count([row("timestamps", "1", "あ", "あ", stamps=[0.0, 9.0], joints=[2.0, 5.0])])
    tuned = count([row("timestamps", "1", "あ", "あ", stamps=[0.0, 1.6, 2.4, 5.5, 9.0], joints=[2.0, 5.0])])
    found = figure(compare(base, tuned), "near joints")
    assert (found["base"], found["tuned"]) == (0, 100)
    assert {row["reading"] for row in compare(base, tuned)} == {OWN}


def test_the_guards_own_sets_are_those_whose_names_are_refused() -> None:
    others = place("german")[0]
    assert all(place(name)[0] < others for name in (*GUARDS_OWN, "joined 60 s"))
    assert len({place(name) for name in GUARDS_OWN}) + 1 == others  # joined ones have names of their own


def test_joined_recordings_stand_in_the_order_of_their_seconds() -> None:
    rows = [row(name, "1", "あ", "あ") for name in ("joined 120 s", "joined 60 s", "silence", "clips")]
    names = list(dict.fromkeys(name for name, _, _ in count(rows)))
    assert names == ["clips", "joined", "joined 60 s", "joined 120 s", "silence"]


def test_the_legend_counts_what_the_table_leaves_out() -> None:
    model = count([row("clips", "1", "あ", "あ")])
    figures = compare(model, model)
    assert len(guard_rows(figures)) - 1 == len(figures) - 1
    assert "Not listed: 1 figure of texts that repeat themselves" in guard_legend(figures)


def test_sets_that_only_one_model_read_are_left_out() -> None:
    base, tuned = count([row("silence", "1", "")]), count([row("silence", "1", "", reading=STOCK)])
    assert compare(base, tuned) == []


def test_the_facts_of_the_timestamps_compare_with_the_base_and_with_pauses() -> None:
    def model(*stamps: float, by_stamps: str = "あい", by_pauses: str = "あい") -> list[dict[str, Any]]:
        texts = [row("timestamps", n, "あ", "あ", reading=STOCK, stamps=list(stamps), joints=[2.0]) for n in "123"]
        long = [(STOCK, by_stamps), (OWN, by_pauses)]
        return texts + [row("joined 60 s", n, text, "あい", reading=reading) for n in "12" for reading, text in long]

    kept, lost = count(model(0.0, 2.1, 4.0)), count(model(0.0, 4.0, by_stamps="あ"))
    same = {"texts": 3, "stamped": 100, "near_joints": 100, "cer": 0, "most_near_joints_change": 0}
    same["least_cer_change"] = 0
    assert timestamp_facts(kept, kept) == same
    worse = {"near_joints": 0, "cer": 50, "most_near_joints_change": -100, "least_cer_change": 50}
    assert timestamp_facts(kept, lost) == same | worse
    without = count([r for r in model(0.0, 2.1, 4.0) if r["set"] != "timestamps"])
    assert timestamp_facts(without, without) is None
