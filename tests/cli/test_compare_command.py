"""The command on made-up runs."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from run_folders import write_grid, write_run
from terminal import run_in_terminal, widest

from kikitori.cli.compare import main
from kikitori.runtime.errors import DataError


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the command and returns what it printed."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["kikitori", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    return run


def test_the_table_ranks_and_no_cell_is_folded_in_a_pipe(compare, tmp_path: Path) -> None:
    write_grid(tmp_path)
    lines = compare(tmp_path).splitlines()
    header = next(line for line in lines if "val CER %" in line)
    for column in (
        "model.d_model",
        "optim.lr",
        "spread",
        "against the best",
        "test CER %",
        "time",
        "peak GB",
        "M params",
    ):
        assert column in header
    first, second, third, fourth = (line.split("│")[1:-1] for line in lines if line.startswith("│"))
    assert [cell.strip() for cell in first[:2]] == ["64", "0.001"]
    assert first[5].strip() == "best"
    assert second[5].strip() == "indistinguishable from the best"
    assert third[5].strip().startswith("worse by ")
    assert [cell.strip() for cell in fourth[7:]] == ["72 s", "33.3", "1.5", "1.0"]
    assert len({len(line) for line in lines if line[:1] in {*"│┏┡└"}}) == 1


@pytest.mark.parametrize("columns", [80, 130])
def test_the_tables_are_complete_in_a_narrow_terminal(compare, tmp_path: Path, columns: int) -> None:
    write_grid(tmp_path / "grid")
    write_run(tmp_path / ("録音" * 30), 4)
    write_run(tmp_path / ("a-long-name-" * 10), 5, digest="other")
    cells = [line.split("│")[1:-1] for line in compare(tmp_path).splitlines() if line.startswith("│")]
    lines = run_in_terminal(["-m", "kikitori", "compare", str(tmp_path)], columns)
    printed = "\n".join(lines)
    assert "…" not in printed
    table_lines = [line for line in lines if line[:1] in {*"│┏┡└"}]
    assert widest(table_lines) <= columns
    joined = "".join(char for char in printed if char not in " \n│┃")
    for row in cells:
        for cell in row:
            for part in cell.strip().replace(" [", "\n[").split("\n"):
                assert part.replace(" ", "") in joined


def test_failures_are_listed_with_reason_and_log_and_do_not_stop_the_others(compare, tmp_path: Path) -> None:
    write_run(tmp_path / "good")
    write_run(tmp_path / "bad", status="failed", error="TrainingError: not finite [nan]")
    (tmp_path / "bad" / "train.log").touch()
    (write_run(tmp_path / "cut") / "results.json").write_text('{"status": "comp')
    write_run(tmp_path / "pruned", status="pruned", error="worse than the median at step 20")
    printed = compare(tmp_path)
    assert "Not completed: 3" in printed
    assert f"bad: failed: TrainingError: not finite [nan] (log: {tmp_path}/bad/train.log)" in printed
    assert "cut: unreadable: results.json is damaged or cut off" in printed
    assert "pruned: pruned: worse than the median at step 20" in printed


def test_nothing_completed_is_an_error_that_says_why(compare, tmp_path: Path) -> None:
    write_run(tmp_path / "bad", status="failed", error="TrainingError: not finite")
    with pytest.raises(DataError, match=r"no run is completed(.|\n)*bad: failed: TrainingError: not finite"):
        compare(tmp_path)


def test_runs_on_different_data_are_not_mixed(compare, tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", digest="other")
    printed = compare(tmp_path)
    assert printed.count("┏") == 2
    assert "must not be compared across tables" in printed
    assert "must not be compared across tables" in compare(tmp_path, "--format", "md")


def test_markdown_can_be_pasted(compare, tmp_path: Path) -> None:
    write_run(tmp_path / "a", config={"model": {"name": "x|y"}})
    write_run(tmp_path / "b", 3)
    table = [line for line in compare(tmp_path, "--format", "md").splitlines() if line.startswith("|")]
    assert table[0].startswith("| model.name | val CER % | seeds |")
    assert table[1].startswith("| --- | ---: |")
    assert table[2].startswith("| x\\|y | 8.1 [")
    assert table[4].startswith("| micro before training | 100.0 [")
    assert len(table) == 5


def test_json_holds_full_numbers_and_failures(compare, tmp_path: Path) -> None:
    write_run(tmp_path / "a", 1)
    write_run(tmp_path / "b", status="failed", error="oh")
    found = json.loads(compare(tmp_path, "--format", "json"))
    (row,) = found["data_sets"][0]["rows"]
    assert row["validation"]["mean"]["value"] == 3 / 37
    assert row["device_hours"] == 72 / 3600
    assert found["not_completed"][0]["reason"] == "oh"


def test_csv_has_one_line_per_run(compare, tmp_path: Path) -> None:
    write_run(tmp_path / "a", config={"seed": 0})
    write_run(tmp_path / "b", config={"seed": 1})
    write_run(tmp_path / "c", 3, config={"optim": {"lr": 0.1}})
    write_run(tmp_path / "d", status="failed", error="oh, no")
    rows = list(csv.DictReader(io.StringIO(compare(tmp_path, "--format", "csv"))))
    assert [(row["run"], row["rank"], row["seed"], row["status"], row["optim.lr"]) for row in rows] == [
        ("a", "1", "0", "completed", "0.001"),
        ("b", "1", "1", "completed", "0.001"),
        ("c", "2", "0", "completed", "0.1"),
        ("d", "", "", "failed", ""),
    ]
    assert float(rows[0]["validation_cer"]) == 3 / 37
    assert float(rows[0]["validation_cer_before"]) == 1
    assert rows[3]["reason"] == "oh, no"


def test_the_command_starts_without_torch_and_ends_without_a_traceback(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    script = (
        "import sys; from kikitori.cli.main import main; main(); print(sorted({'torch', 'plotly'} & {*sys.modules}))"
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", script, "compare", *arguments], capture_output=True, text=True)

    assert run(str(tmp_path)).stdout.splitlines()[-1] == "[]"
    missing = run(str(tmp_path / "b"))
    assert missing.returncode == 1
    assert missing.stderr.startswith(f"DataError: {tmp_path}/b does not exist; give run folders")
    assert "Traceback" not in missing.stderr


def test_a_report_that_cannot_be_written_is_an_error(compare, tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"--report .*file/report\.html cannot be written: .*; choose another file"):
        compare(tmp_path, "--report", tmp_path / "file" / "report.html")
