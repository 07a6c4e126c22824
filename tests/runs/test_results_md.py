"""results.md: what a run did, with which result and at what cost, complete and safe to paste."""

from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
from run_folders import REFERENCES, write_run

from kikitori.runs.results_md import CURVE_ROWS, EXAMPLES, LONGEST, examples_table, learning_curve, markdown
from kikitori.runtime.files import read_json, read_lines, write_lines

MORE: dict[str, Any] = {
    "options": ["--config-dir", "mine"],
    "config": {"data": {"global_batch_size": 4}},
    "precision": "bf16-mixed",
    "checkpoint": {"steps": 20, "best": "checkpoints/step-10.ckpt", "best_step": 10, "monitor": "val/cer"},
    "finished": "2026-11-22T11:30:00",
    "interruptions": [
        {"reason": "killed", "resumed": "2026-11-22T10:20:00", "step": 0},
        {"reason": "stopped", "resumed": "2026-11-22T10:40:00", "step": 10},
    ],
    "disk": {"model": 4_360_000, "other": 12_000},
}


def trained(folder: Path, **changes: Any) -> dict[str, Any]:
    results = read_json(write_run(folder, overrides=["data=demo", "data.limit.train=6"], **MORE) / "results.json")
    results["scores"]["change"] = results["scores"]["after"]
    results["data"] |= {"rejects": {"silent": 3}}
    results["data"]["splits"]["train"] = {"clips": 6, "seconds": 9.0}
    return results | changes


def test_the_page_has_result_curve_examples_and_all_that_they_depend_on(tmp_path: Path) -> None:
    text = markdown(trained(tmp_path), tmp_path)
    assert text.startswith("# micro on a corpus\n\n| split | clips | CER % before |")
    assert "| 10 | 3 | 2 | 90.0 | 100.0 | scored and saved |\n| 20 | 3 | 2 | 45.0 | 100.0 |  |\n" in text
    assert f"| {REFERENCES[0]} |" in text
    for line in (
        "- Command: `kikitori train --config-dir mine data=demo data.limit.train=6`",
        "- Time: 2026-11-22 10:00 to 2026-11-22 11:30; killed, resumed at step 0; stopped, resumed at step 10",
        "- Training: 20 steps of 4 clips, 10.0 epochs; scored and saved is step 10, the best by val/cer",
        "- Corpus: a corpus (validation 6 clips, 9 s, test 6 clips, 9 s, train 6 clips, 9 s); left out: 3 silent",
        "- Precision: bf16-mixed",
        "- Disk: 4 MB: model 4 MB, other 12 kB",
        "- Code: kikitori 0.1.0 at commit 0123456789ab",
    ):
        assert f"{line}\n" in text
    assert str(tmp_path) not in text
    # Names of clips may contain a speaker's.
    assert "clip_0" not in text


def test_an_evaluation_has_no_training(tmp_path: Path) -> None:
    results = read_json(write_run(tmp_path, command="evaluate") / "results.json") | {"history": []}
    results["data"]["rejects"] = {}
    text = markdown(results, tmp_path)
    assert "## Validations" not in text
    assert "- Training" not in text
    assert "| validation reference | transcript |" in text


def test_results_without_the_facts_of_this_version_make_a_page(tmp_path: Path) -> None:
    results = trained(tmp_path)
    for key in (*MORE, "versions", "git", "started", "history", "overrides"):
        del results[key]
    assert "None" not in markdown(results)


@hypothesis.given(count=st.integers(1, 300), chosen=st.integers(1, 300))
def test_a_long_curve_is_thinned_and_keeps_the_last_and_the_scored_validation(count: int, chosen: int) -> None:
    chosen = min(chosen, count)
    rows = [
        {"step": step, "train/loss": 1.0, "val/loss": 1.0, "val/cer": 0.1, "val/wer": 0.2}
        for step in range(1, count + 1)
    ]
    _, *curve = learning_curve({"history": rows, "checkpoint": {"best_step": chosen}})
    steps = [int(row[0]) for row in curve]
    assert steps == sorted(set(steps))
    assert {chosen, count} <= set(steps)
    assert len(steps) <= CURVE_ROWS + 1
    assert [row[0] for row in curve if row[-1]] == [str(chosen)]


@pytest.mark.parametrize(
    "text", ["a|b", "line\nline", "<script>alert(1)</script>", "`code`", "back\\slash", "あ" * 5000, ""]
)
def test_no_transcript_breaks_the_table(tmp_path: Path, text: str) -> None:
    results = trained(tmp_path)
    path = tmp_path / "predictions/validation_after.jsonl"
    write_lines(path, [{**row, "hypothesis": text} for row in read_lines(path)])
    page = markdown(results, tmp_path)
    (start,) = [i for i, line in enumerate(page.splitlines()) if line.startswith("| validation reference |")]
    table = page.splitlines()[start : start + 2 + EXAMPLES]
    assert {line.replace("\\|", "").count("|") for line in table} == {4}
    assert "<" not in page
    assert max(map(len, table)) < 4 * LONGEST


@pytest.mark.parametrize("content", [None, b"", b"{}\n", b"\x80\x04", b"[1]\n"])
def test_damaged_predictions_leave_the_examples_out(tmp_path: Path, content: bytes | None) -> None:
    results = trained(tmp_path)
    path = tmp_path / "predictions/validation_before.jsonl"
    path.unlink() if content is None else path.write_bytes(content)
    assert examples_table(results, tmp_path) == ""
    assert "# micro on a corpus" in markdown(results, tmp_path)
