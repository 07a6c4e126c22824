"""The table of a run: complete at any width, and the same in results.md and in the terminal."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, Group
from run_folders import SCORING
from terminal import run_in_terminal, widest

from kikitori.runs.results_md import markdown
from kikitori.runs.summary import Grid, average_lines, cost_line, cut_lines, disk_line, fit, rows
from kikitori.runtime.console import duration

PRINT = (
    "import json, sys; from kikitori.runs import summary; summary.print_results(json.load(open(sys.argv[1])), 'out')"
)


def score(cer: float, sign: float = 1.0) -> dict[str, Any]:
    rates = {"cer": cer, "wer": 2 * cer, "cer_raw": 3 * cer, "wer_raw": 4 * cer, "clips": 200}
    return rates | {"cer_ci95": [0.9 * cer, 1.1 * cer], "wer_ci95": [1.8 * cer, 2.2 * cer]}


def results(scale: float = 1.0, **changes: Any) -> dict[str, Any]:
    """Results of a training with rates up to 400 %, and so with the widest cells."""
    splits = ("train", "validation", "test")
    scores = {
        stage: {split: score(scale * cer) for split in splits}
        for stage, cer in (("before", 4.033), ("after", 1.21), ("change", -2.823))
    }
    facts = {split: {"clips": 200, "seconds": 600.0, "clips_over_window": 0} for split in splits}
    cost = {"prepare_s": 2.0, "evaluate_s": 139.6, "fit_s": 7000.0, "train_clips_per_s": 67.09, "devices": 2}
    cost |= {"device": "NVIDIA H100", "peak_memory_gb": 10.04}
    made = {"command": "train", "scores": scores, "cost": cost, "scoring": SCORING}
    made |= {"data": {"corpus": "Common Voice", "splits": facts, "rejects": {"silent": 3}}}
    made |= {"model": {"name": "whisper-base", "parameters": 72_600_000, "window_s": 30.0}}
    return made | changes


def evaluation() -> dict[str, Any]:
    return results(command="evaluate", scores={"evaluated": {s: score(4.033) for s in ("validation", "test")}})


@pytest.mark.parametrize("made", [results(), results(0.1), evaluation()], ids=["training", "usual rates", "evaluation"])
def test_the_table_is_complete_in_a_terminal_of_80_columns(tmp_path: Path, made: dict[str, Any]) -> None:
    (tmp_path / "results.json").write_text(json.dumps(made))
    lines = run_in_terminal(["-c", PRINT, str(tmp_path / "results.json")])
    printed = "\n".join(lines)
    assert widest(lines) <= 80
    assert "…" not in printed
    # A value and its interval may be on two lines, but each is whole.
    parts = {part for cells in rows(made)[1:] for cell in cells for part in cell.replace(" [", "\n[").split("\n")}
    assert not [part for part in parts if part not in printed]
    assert lines[0] == "whisper-base on Common Voice"
    assert lines[-1] == "Everything is in out"


def test_costs_are_in_words() -> None:
    cost = "preparation 2 s, training 1.9 h, scoring 2 min, 67.1 training clips/s, peak memory 10.0 GB, 2 × NVIDIA H100"
    assert cost_line(results()["cost"]) == cost


def test_disk_use_is_in_words() -> None:
    disk = {"checkpoints": 1_742_000_000, "model": 290_100_000, "predictions": 12_300, "other": 512}
    assert disk_line({"disk": disk}) == "2.0 GB: checkpoints 1.7 GB, model 290 MB, predictions 12 kB, other 512 B"
    assert disk_line({}) == ""


def test_costs_that_are_unknown_are_left_out() -> None:
    assert cost_line({"evaluate_s": 3.0, "fit_s": None, "train_clips_per_s": None}) == "scoring 3 s"


def test_durations_have_the_unit_that_suits_them() -> None:
    assert [duration(s) for s in (None, 42, 180, 9000)] == ["–", "42 s", "3 min", "2.5 h"]


def test_clips_longer_than_the_window_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    from kikitori.runs.summary import print_results

    made = results()
    made["data"]["splits"]["test"]["clips_over_window"] = 2
    print_results(made, Path("out"))
    assert "2 test clips are longer than the model's window; only their first 30 s are read" in capsys.readouterr().out


NAMES = ["録音" * 40, "a-very-long-name-of-a-run-" * 6, "short", "[b]markup[/b]"]


def grid(names: list[str], num_rows: int = 4) -> Grid:
    cells = [names[i % len(names)] for i in range(num_rows)]
    rates = [f"{i}.5 [{i}.1, {i}.9]" for i in range(num_rows)]
    columns = {"run": cells, "val CER %": rates, "seeds": ["3"] * num_rows}
    columns["against the best"] = ["worse by 1.0"] * num_rows
    return Grid(["run"], [["val CER %", "seeds"], ["against the best"]], columns, left=["run"])


def drawn(shown: Grid, width: int) -> str:
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(Group(*fit(shown, console)))
    return capture.get()


@pytest.mark.parametrize("num_rows", [1, 4, 50])
@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_name_and_no_figure_is_cut_at_any_width(width: int, num_rows: int) -> None:
    text = drawn(grid(NAMES, num_rows), width)
    assert "…" not in text
    assert widest(text.splitlines()) <= width
    joined = "".join(char for char in text if char not in " \n│┃")
    for name in NAMES[:num_rows]:
        assert name in joined
    for i in range(num_rows):
        assert f"{i}.5" in text
        assert f"[{i}.1, {i}.9]" in text


def test_a_cell_wider_than_the_terminal_is_folded() -> None:
    columns = {"run": ["a"], "reason": ["x" * 100 + "y"]}
    text = drawn(Grid(["run"], [["reason"]], columns), 40)
    assert widest(text.splitlines()) <= 40
    assert text.count("x") == 100
    assert "y" in text.splitlines()[-1]


def test_long_names_are_listed_once_and_numbered_in_the_tables() -> None:
    text = drawn(grid(NAMES), 80)
    assert "#1  録音" in text
    assert text.count("#1 ") == 2


def test_a_narrow_terminal_loses_the_frame_first_and_then_the_single_table() -> None:
    short = grid(["a", "b"])
    widths = {width: drawn(short, width) for width in (60, 50, 42)}
    assert "┃" in widths[60]
    assert "┃" not in widths[50]
    assert widths[50].count("run") == 1
    assert widths[42].count("run") == 2


def test_a_table_in_a_pipe_is_not_folded(capsys: pytest.CaptureFixture[str]) -> None:
    from kikitori.runs.summary import terminal

    console = terminal()
    console.print(*fit(grid(NAMES), console))
    (row,) = [line for line in capsys.readouterr().out.splitlines() if NAMES[1] in line]
    assert "1.5 [1.1, 1.9]" in row
    assert "worse by 1.0" in row


def test_the_lenient_rate_of_japanese_is_a_line_before_and_after() -> None:
    made = results(0.1)
    assert "CER of readings" not in markdown(made)
    for stage, rate in (("before", 0.123), ("after", 0.0456)):
        for split in ("validation", "test"):
            made["scores"][stage][split]["cer_reading"] = rate
    line = "CER of readings, in which kana, kanji and digits of the same words are equal: "
    assert f"- {line}validation 12.3 → 4.6 %, test 12.3 → 4.6 %\n" in markdown(made)
    evaluated = evaluation()
    evaluated["scores"]["evaluated"]["test"]["cer_reading"] = 0.5
    assert f"- {line}test 50.0 %\n" in markdown(evaluated)


def test_notes_on_language_and_task_are_shown() -> None:
    model = results()["model"] | {"task": "translate", "notes": ["model.language=ja is used, as set"]}
    text = markdown(results(model=model))
    assert "- model.language=ja is used, as set\n" in text
    assert "- A translation is scored by its wording" in text


def test_transcripts_that_were_cut_off_are_counted_below_the_table() -> None:
    scores = {
        "before": {"validation": {"cut": 3, "clips": 200}, "test": {"cut": 0, "clips": 200}},
        "after": {"validation": {"cut": 0, "clips": 200}, "test": {"clips": 200}},
        "after_in_full_window": {"validation": {"cut": 2, "clips": 20}, "test": {"cut": 1, "clips": 20}},
        "change": {"validation": {"cer": 0.1}},
    }
    (line,) = cut_lines({"scores": scores})
    assert line.endswith(": before training validation 3 of 200; in the full window validation 2 of 20, test 1 of 20")
    assert cut_lines({"scores": {"evaluated": {"test": {"cut": 2, "clips": 9}}}})[0].endswith(": test 2 of 9")
    assert cut_lines({"scores": {"after": scores["after"]}}) == []


@pytest.mark.parametrize(
    ("runs", "alpha", "given", "words"),
    [
        (3, 0.4, None, "alpha 0.4 in own windows, 0.4 of the mean of 3 models and 0.6 of the base"),
        (1, 0.4, None, "0.4 of the tuned model and 0.6 of the base"),
        (3, 0, None, "alpha 0 in own windows, the base itself: no mixture was better on validation"),
        (3, 0, 0, "0 of the mean of 3 models and 1 of the base"),
    ],
)
def test_an_average_says_which_mixture_it_saved(runs: int, alpha: float, given: float | None, words: str) -> None:
    averaged = {"runs": runs, "alpha": alpha, "reading": "own windows"}
    (line,) = average_lines(results(averaged=averaged, config={"alpha": given}))
    assert line.startswith("before: the base; after, and saved: ")
    assert line.endswith(words)
    assert average_lines(results()) == []
