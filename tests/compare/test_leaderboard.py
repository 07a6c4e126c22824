from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folders import REFERENCES, with_errors, write_grid, write_run

from kikitori.compare.formats import figures_of, markdown, notes
from kikitori.compare.leaderboard import (
    ALIKE,
    BEST,
    UNPAIRED,
    UNRANKED,
    WORSE,
    Leaderboard,
    build_leaderboards,
    leaderboards_of,
    pareto,
    rank,
)
from kikitori.metrics.normalizer import text_rules
from kikitori.runs.reader import find_runs
from kikitori.runtime.files import read_json, write_json


def tables(folder: Path) -> list[Leaderboard]:
    return leaderboards_of(find_runs([str(folder)]))


def lr(value: float, seed: int = 0) -> dict:
    return {"seed": seed, "optim": {"lr": value}}


def test_seeds_are_one_row_with_mean_and_extremes(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 1, lr(0.1, seed=0))
    write_run(tmp_path / "b", 3, lr(0.1, seed=1))
    write_run(tmp_path / "c", 2, lr(0.2, seed=0))
    (table,) = tables(tmp_path)
    row = next(row for row in table.rows if row.choices["optim.lr"] == 0.1)
    # Three of six clips err.
    characters = sum(map(len, REFERENCES))
    assert row.each["validation"] == pytest.approx([3 / characters, 9 / characters])
    assert row.estimate["validation"].value == pytest.approx(6 / characters)
    assert row.seeds == [0, 1]
    assert table.keys == ["optim.lr"]


def test_the_interval_contains_the_mean(tmp_path: Path) -> None:
    write_grid(tmp_path)
    for row in tables(tmp_path)[0].rows:
        for estimate in row.estimate.values():
            assert estimate.low <= estimate.value <= estimate.high
            assert estimate.high < 2 * estimate.value


def test_rows_are_ranked_by_validation_whatever_test_says(tmp_path: Path) -> None:
    worse = write_run(tmp_path / "worse", 3, lr(0.1))
    write_run(tmp_path / "better", 1, lr(0.2))
    # The row that is last on validation has the best test score.
    run = find_runs([str(worse)])[0]
    run.results["scores"]["after"]["test"]["cer"] = 0.0
    rows = rank([run, *find_runs([str(tmp_path / "better")])])
    assert [row.runs[0].name for row in rows] == ["better", "worse"]


def test_each_row_is_paired_with_the_best(tmp_path: Path) -> None:
    references = REFERENCES * 5
    one_more = [*with_errors(1, references)]
    one_more[1] = "ぬ" + one_more[1][1:]
    for name, outputs, rate in (
        ("best", with_errors(1, references), 0.1),
        ("alike", one_more, 0.2),
        ("worse", with_errors(3, references), 0.3),
    ):
        write_run(tmp_path / name, 0, lr(rate), hypotheses=outputs, references=references)
    rows = tables(tmp_path)[0].rows
    assert [(row.runs[0].name, row.verdict) for row in rows] == [("best", BEST), ("alike", ALIKE), ("worse", WORSE)]
    gap = rows[2].difference
    assert gap is not None
    assert 0 < gap.low < gap.value < gap.high
    assert rows[1].difference.low == 0.0  # type: ignore[union-attr]


def test_pairing_finds_differences_that_overlapping_intervals_hide(tmp_path: Path) -> None:
    # Both runs miss every second clip; one is better by a character on each of the others.
    references = ["カレーとサラダと水", "ピザ"] * 10
    write_run(tmp_path / "a", 0, lr(0.1), hypotheses=["", "ピザ"] * 10, references=references)
    write_run(tmp_path / "b", 0, lr(0.2), hypotheses=["", "ピサ"] * 10, references=references)
    best, other = tables(tmp_path)[0].rows
    assert best.estimate["validation"].high > other.estimate["validation"].low
    assert other.verdict == WORSE


def test_overlapping_seeds_are_marked(tmp_path: Path) -> None:
    for name, errors, rate, seed in (("a", 1, 0.1, 0), ("b", 4, 0.1, 1), ("c", 3, 0.2, 0), ("d", 3, 0.2, 1)):
        write_run(tmp_path / name, errors, lr(rate, seed), references=REFERENCES * 5)
    other = tables(tmp_path)[0].rows[1]
    assert other.verdict == WORSE
    assert other.seeds_overlap


def test_runs_with_other_clips_or_another_scoring_are_in_separate_tables(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", config=lr(0.2))
    write_run(tmp_path / "c", digest="other")
    write_run(tmp_path / "d", scoring={"normaliser": "another", "segmenter": "sudachipy mode C"})
    # Without its transcripts it cannot be scored again.
    (tmp_path / "d/predictions/test_before.jsonl").unlink()
    found = tables(tmp_path)
    assert [[run.name for run in table.runs] for table in found] == [["a", "b"], ["c"], ["d"]]
    assert found[1].rows[0].verdict == BEST


def test_without_a_digest_the_texts_distinguish_data_sets(tmp_path: Path) -> None:
    write_run(tmp_path / "a", digest=None)
    write_run(tmp_path / "b", digest=None, config=lr(0.2))
    write_run(tmp_path / "c", digest=None, references=REFERENCES[:4])
    assert [len(table.runs) for table in tables(tmp_path)] == [2, 1]


def test_an_evaluation_of_test_alone_joins_its_table_unranked(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 1)
    folder = write_run(tmp_path / "b", 2, command="evaluate")
    run = find_runs([str(folder)])[0]
    del run.results["scores"]["evaluated"]["validation"]
    (table,) = leaderboards_of([run, *find_runs([str(tmp_path / "a")])])
    assert [row.verdict for row in table.rows] == [BEST, UNRANKED]
    assert "validation" not in table.rows[1].estimate


def test_an_evaluation_is_ranked_among_trainings(tmp_path: Path) -> None:
    write_run(tmp_path / "trained", 2)
    write_run(tmp_path / "stock", 1, command="evaluate")
    assert [row.runs[0].name for row in tables(tmp_path)[0].rows] == ["stock", "trained"]


def test_truncated_predictions_are_not_compared_clip_by_clip(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 1, lr(0.1))
    cut = write_run(tmp_path / "b", 2, lr(0.2)) / "predictions" / "validation_after.jsonl"
    cut.write_text(cut.read_text()[:-20])
    rows = tables(tmp_path)[0].rows
    assert [row.verdict for row in rows] == [BEST, UNPAIRED]
    assert rows[1].estimate["validation"].low > 0


def test_device_hours_count_every_device(tmp_path: Path) -> None:
    cost = {"fit_s": 1800.0, "evaluate_s": 0.0, "devices": 4, "device": "NVIDIA A100"}
    write_run(tmp_path / "a", cost=cost)
    (table,) = tables(tmp_path)
    assert table.rows[0].hours == pytest.approx(2.0)
    assert table.hours_name == "GPU hours"


def test_notes_state_the_limits_of_the_comparison(tmp_path: Path) -> None:
    write_run(tmp_path / "a", git={"commit": "1", "dirty": True})
    write_run(tmp_path / "b", config=lr(0.2))
    text = " ".join(notes(tables(tmp_path)[0]))
    for words in (
        "One seed each",
        "from 2 different commits",
        "uncommitted changes",
        "test split was not used for any choice",
    ):
        assert words in text


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_pareto_front_holds_the_points_that_no_other_dominates(points: list[tuple[float, float]]) -> None:
    front = {points[i] for i in pareto(points)}
    beaten = {p for p in points if any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
    assert front == set(points) - beaten


def test_the_model_before_training_is_a_row_of_its_own(tmp_path: Path) -> None:
    """Each run scored the same pretrained model, which is one row, without costs, and paired with the best."""
    for name, errors, seed in (("a", 1, 0), ("b", 1, 1), ("c", 2, 0)):
        config = {"seed": seed, "model": {"name": "openai/whisper-base"}, "optim": {"lr": errors}}
        write_run(tmp_path / name, errors, config, [f"optim.lr={errors}"], model={"name": "base", "parameters": 9})
    (table,), _ = build_leaderboards([str(tmp_path)])
    assert [(row.label, len(row.runs), row.is_base) for row in table.rows] == [
        ("lr=1", 2, False),
        ("lr=2", 1, False),
        ("base before training", 1, True),
    ]
    base = table.rows[-1]
    assert base.estimate["validation"].value == 1
    assert base.verdict == WORSE
    assert (base.hours, base.cost("fit_s"), base.seeds) == (None, None, [])
    assert table.keys == ["optim.lr"]
    assert [run.name for run in table.runs] == ["a", "b", "c"]


def test_random_weights_are_no_base_model(tmp_path: Path) -> None:
    write_run(tmp_path / "a", config={"model": {"d_model": 64}})
    (table,), _ = build_leaderboards([str(tmp_path)])
    assert [row.is_base for row in table.rows] == [False]


def test_several_languages_have_a_column_each_with_the_mean_of_the_seeds(tmp_path: Path) -> None:
    rules = text_rules("ja", ["ja", "ko"])
    for seed, cer in enumerate((0.1, 0.3)):
        folder = write_run(tmp_path / str(seed), config=lr(0.1, seed), scoring=rules)
        results = read_json(folder / "results.json")
        for rates in results["scores"]["after"].values():
            rates["languages"] = {"ja": {"cer": cer}, "ko": {"cer": 2 * cer}}
        write_json(folder / "results.json", results)
    (table,) = tables(tmp_path)
    (row,) = table.rows
    assert row.languages == {"ja": pytest.approx(0.2), "ko": pytest.approx(0.4)}
    page = markdown([table], [])
    assert "| val ja CER % | val ko CER % |" in page
    assert "| 20.0 | 40.0 |" in page
    assert figures_of(row)["validation_cer_by_language"] == row.languages
    (alone,) = tables(write_run(tmp_path / "one"))
    assert "val ja CER %" not in markdown([alone], [])
    assert "validation_cer_by_language" not in figures_of(alone.rows[0])
