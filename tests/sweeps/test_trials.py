import json
import time
from pathlib import Path
from typing import Any

import pytest

from kikitori.runtime.errors import DataError, SweepError
from kikitori.sweeps.live_table import failure_report, table
from kikitori.sweeps.trials import Sweep, Trial, exit_reason, open_sweep, progress, update_state

EVALUATED = {"evaluated": {"validation": {"cer": 0.5}, "test": {"cer": 0.9}}}


def trial(number: int = 0, lr: str = "1e-5", **changes: Any) -> Trial:
    name = f"{number}-optim.lr-{lr}"
    given = {"overrides": ["data=demo", f"optim.lr={lr}"], "swept": {"optim.lr": lr}, "log": f"{name}/output.log"}
    return Trial(number, name, **{**given, **changes})


def write(folder: Path, name: str, value: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))


def test_a_sweep_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    sweep = open_sweep(tmp_path, ["kikitori", "train"], None)
    sweep.add(trial(0, state="completed", value=0.25, seconds=3.5))
    sweep.add(trial(1, "3e-5", state="failed", reason="killed by SIGKILL"))
    sweep.save()
    again = open_sweep(tmp_path, ["kikitori", "train"], str(tmp_path))
    assert again == sweep
    assert [t.number for t in again.failures()] == [1]


def test_a_folder_that_holds_a_sweep_is_not_begun_anew(tmp_path: Path) -> None:
    open_sweep(tmp_path, [], None).save()
    with pytest.raises(SweepError, match=r"already holds a sweep; go on with resume_sweep="):
        open_sweep(tmp_path, [], None)


def test_a_folder_that_holds_none_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=r"resume_sweep=here holds no sweep\.json; give the folder of a sweep"):
        open_sweep(tmp_path, [], "here")


@pytest.mark.parametrize("content", ['{"trials": [', "[]", '{"trials": [{"nummer": 1}]}', "{}"])
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    write(tmp_path, "sweep.json", content)
    with pytest.raises(DataError, match=r"sweep\.json"):
        open_sweep(tmp_path, [], "here")


def test_another_command_is_not_mixed_into_a_sweep(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, [])
    first = sweep.add(trial())
    assert sweep.add(trial()) is first
    with pytest.raises(SweepError, match=r"its trial 0 has optim\.lr=1e-5, this command gives optim\.lr=3e-5; give"):
        sweep.add(trial(0, "3e-5"))


def test_a_trials_number_in_a_study_does_not_make_it_another(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, [])
    first = sweep.add(trial(overrides=["a=1", "+callbacks.pruning={trial:3}"]))
    assert sweep.add(trial(overrides=["a=1", "+callbacks.pruning={trial:9}"])) is first
    assert first.overrides == ["a=1", "+callbacks.pruning={trial:9}"]


@pytest.mark.parametrize(
    ("results", "code", "state", "reason"),
    [
        ({"status": "completed", "history": [{"val/cer": 0.5}]}, 0, "completed", ""),
        # What a run wrote of itself counts, not how its process went down afterwards.
        ({"status": "completed", "history": [{"val/cer": 0.5}]}, -9, "completed", ""),
        # The best by another measure is no CER.
        ({"status": "completed", "checkpoint": {"value": 5.9}, "history": [{"val/cer": 0.5}]}, 0, "completed", ""),
        ({"status": "completed", "command": "evaluate", "scores": EVALUATED}, 0, "completed", ""),
        ({"status": "pruned", "error": "given up", "history": [{"val/cer": 0.5}]}, 0, "pruned", "given up"),
        ({"status": "failed", "error": "no", "history": [{"val/cer": 0.5}, {"val/cer": 0.9}]}, 1, "failed", "no"),
        ({"status": "running", "history": [{"val/cer": 0.5}]}, -15, "failed", "killed by SIGTERM"),
        ({"status": "running", "history": [{"val/cer": 0.5}]}, None, "waiting", ""),
    ],
)
def test_a_trial_stands_as_its_folder_says(tmp_path: Path, results: Any, code: Any, state: str, reason: str) -> None:
    write(tmp_path, "results.json", results)
    settled = trial()
    update_state(settled, tmp_path, code)
    assert (settled.state, settled.reason, settled.value) == (state, reason, 0.5)


def test_half_a_results_file_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    write(tmp_path, "results.json", '{"status": "comp')
    settled = trial()
    update_state(settled, tmp_path, 1)
    assert settled.state == "failed"


def test_what_an_earlier_start_wrote_of_its_failure_is_not_this_ones(tmp_path: Path) -> None:
    write(tmp_path, "results.json", {"status": "failed", "error": "ConfigError: of old"})
    settled = trial()
    update_state(settled, tmp_path, -9, since=time.time() + 1)
    assert settled.reason == "killed by SIGKILL (out of memory?)"


def test_why_a_process_ended_is_a_signal_or_its_last_words(tmp_path: Path) -> None:
    write(tmp_path, "output.log", "much\nModelError: no such model\n(HYDRA_FULL_ERROR=1 shows where)\n\n")
    assert exit_reason(1, tmp_path / "output.log") == "ModelError: no such model"
    assert exit_reason(-9, tmp_path / "output.log") == "killed by SIGKILL (out of memory?)"
    assert exit_reason(3, tmp_path / "nothing.log") == "ended with exit code 3"


def test_progress_half_written_is_none(tmp_path: Path) -> None:
    assert progress(tmp_path) == {}
    write(tmp_path, "progress.json", '{"step": 1')
    assert progress(tmp_path) == {}


def test_the_table_shows_how_each_trial_stands(tmp_path: Path) -> None:
    from rich.console import Console

    sweep = Sweep(
        tmp_path, [], [trial(0, state="completed", value=0.125, seconds=75), trial(1, "3e-5", state="running")]
    )
    write(tmp_path / sweep.trials[1].folder, "progress.json", {"step": 5, "max_steps": 20, "val/cer": 0.5})
    console = Console(width=120)
    since = {1: (0.0, 4)}
    with console.capture() as shown:
        console.print(table(sweep, since))
    first, second = [line for line in shown.get().splitlines() if "optim.lr=" in line]
    assert all(part in first for part in ("completed", "12.5", "1:15"))
    assert all(part in second for part in ("running", "5 / 20", "50.0"))


def test_every_failure_is_listed_with_reason_log_and_remedy(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, [], [trial(0, state="completed"), trial(1, state="failed", reason="two\nlines")])
    report = failure_report(sweep, sweep.failures())
    assert report.startswith("1 of 2 trials did not end well\n  trial 1 (optim.lr=1e-5): two\n")
    assert f"log: {tmp_path / '1-optim.lr-1e-5/output.log'}" in report
    assert f"resume_sweep={tmp_path} runs these alone" in report
