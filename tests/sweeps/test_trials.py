import json
import time
from pathlib import Path
from typing import Any

import pytest

from kikitori.runtime.errors import DataError, SweepError
from kikitori.sweeps.live_table import Pace, failure_report, live_progress, summary, table
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


def test_a_folder_that_holds_a_sweep_is_not_overwritten(tmp_path: Path) -> None:
    open_sweep(tmp_path, [], None).save()
    with pytest.raises(
        SweepError, match=r"already holds a sweep; choose another folder, or resume: kikitori train -m resume_sweep="
    ):
        open_sweep(tmp_path, [], None)


@pytest.mark.parametrize("content", ['{"trials": [', "[]", '{"trials": [{"nummer": 1}]}', "{}"])
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    write(tmp_path, "sweep.json", content)
    with pytest.raises(DataError, match=r"sweep\.json"):
        open_sweep(tmp_path, [], "here")


def test_another_command_is_not_mixed_into_a_sweep(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, [])
    first = sweep.add(trial())
    assert sweep.add(trial()) is first
    message = r"trial 0 was started with optim\.lr=1e-5; this command gives optim\.lr=3e-5; "
    message += "resume it with kikitori train -m resume_"
    with pytest.raises(SweepError, match=message):
        sweep.add(trial(0, "3e-5"))


def test_a_retried_trial_may_have_another_number_in_its_study(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, [])
    first = sweep.add(trial(overrides=["a=1", "+callbacks.pruning={trial:3}"]))
    assert sweep.add(trial(overrides=["a=1", "+callbacks.pruning={trial:9}"])) is first
    assert first.overrides == ["a=1", "+callbacks.pruning={trial:9}"]


@pytest.mark.parametrize(
    ("results", "code", "state", "reason"),
    [
        ({"status": "completed", "history": [{"step": 1, "val/cer": 0.5}]}, 0, "completed", ""),
        # What the run wrote counts, not how its process ended afterwards.
        ({"status": "completed", "history": [{"step": 1, "val/cer": 0.5}]}, -9, "completed", ""),
        # The best value of another metric is not taken for a CER.
        (
            {"status": "completed", "checkpoint": {"value": 5.9}, "history": [{"step": 1, "val/cer": 0.5}]},
            0,
            "completed",
            "",
        ),
        ({"status": "completed", "command": "evaluate", "scores": EVALUATED}, 0, "completed", ""),
        (
            {"status": "pruned", "error": "by the pruner", "history": [{"step": 1, "val/cer": 0.5}]},
            0,
            "pruned",
            "by the pruner",
        ),
        (
            {"status": "failed", "error": "no", "history": [{"step": 1, "val/cer": 0.5}, {"step": 2, "val/cer": 0.9}]},
            1,
            "failed",
            "no",
        ),
        ({"status": "running", "history": [{"step": 1, "val/cer": 0.5}]}, -15, "failed", "killed by SIGTERM"),
        ({"status": "running", "history": [{"step": 1, "val/cer": 0.5}]}, None, "waiting", ""),
    ],
)
def test_the_state_of_a_trial_is_read_from_its_folder(
    tmp_path: Path, results: Any, code: Any, state: str, reason: str
) -> None:
    write(tmp_path, "results.json", results)
    ended = trial()
    update_state(ended, tmp_path, code)
    assert (ended.state, ended.reason, ended.value) == (state, reason, 0.5)


def test_a_truncated_results_file_makes_a_trial_failed(tmp_path: Path) -> None:
    write(tmp_path, "results.json", '{"status": "comp')
    ended = trial()
    update_state(ended, tmp_path, 1)
    assert ended.state == "failed"


def test_the_error_of_an_earlier_attempt_is_ignored(tmp_path: Path) -> None:
    write(tmp_path, "results.json", {"status": "failed", "error": "ConfigError: an old one"})
    ended = trial()
    update_state(ended, tmp_path, -9, since=time.time() + 1)
    assert ended.reason == "killed by SIGKILL (out of memory?)"


def test_the_exit_reason_is_a_signal_or_the_last_line_of_output(tmp_path: Path) -> None:
    write(tmp_path, "output.log", "progress\nModelError: no such model\n(HYDRA_FULL_ERROR=1 shows where)\n\n")
    assert exit_reason(1, tmp_path / "output.log") == "ModelError: no such model"
    assert exit_reason(-9, tmp_path / "output.log") == "killed by SIGKILL (out of memory?)"
    assert exit_reason(3, tmp_path / "nothing.log") == "ended with exit code 3"


def test_a_truncated_progress_file_is_ignored(tmp_path: Path) -> None:
    assert progress(tmp_path) == {}
    write(tmp_path, "progress.json", '{"step": 1')
    assert progress(tmp_path) == {}


def test_the_table_shows_the_state_of_each_trial(tmp_path: Path) -> None:
    from rich.console import Console

    sweep = Sweep(
        tmp_path, [], [trial(0, state="completed", value=0.125, seconds=75), trial(1, "3e-5", state="running")]
    )
    write(tmp_path / sweep.trials[1].folder, "progress.json", {"step": 5, "max_steps": 20, "val/cer": 0.5})
    console = Console(width=120)
    pace = Pace()
    pace.first_seen[1] = (0.0, 4)
    with console.capture() as shown:
        console.print(table(sweep, pace))
    first, second = [line for line in shown.get().splitlines() if "optim.lr=" in line]
    assert all(part in first for part in ("completed", "12.5", "1:15"))
    assert all(part in second for part in ("running", "5 / 20", "50.0"))


def test_every_failure_is_listed_with_reason_log_and_the_command_to_resume(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, [], [trial(0, state="completed"), trial(1, state="failed", reason="two\nlines")])
    report = failure_report(sweep, sweep.failures())
    assert report.startswith("1 of 2 trials are not completed\n  trial 1 (optim.lr=1e-5): two\n")
    assert f"log: {tmp_path / '1-optim.lr-1e-5/output.log'}" in report
    assert report.endswith(f"Run these again: kikitori train -m resume_sweep={tmp_path}")


def test_a_trial_that_would_fail_again_is_not_offered_to_be_resumed(tmp_path: Path) -> None:
    lost = trial(1, state="failed", reason="killed by SIGKILL")
    sweep = Sweep(tmp_path, [], [trial(0, state="failed", reason="Diverged: nan", is_repeatable=True), lost])
    *_, left, again = failure_report(sweep, sweep.failures()).splitlines()
    assert left == "Would fail again, so a resume leaves them: 0 (delete a folder to retry)"
    assert again == f"Run the others again: {sweep.resume_command}"
    # A study remembers what it tried, whatever is deleted.
    *_, left, _ = failure_report(sweep, sweep.failures(), is_search=True).splitlines()
    assert left == "Would fail again, so a resume leaves them: 0"
    assert "resume_sweep" not in failure_report(sweep, sweep.trials[:1])


@pytest.mark.parametrize(
    ("error_type", "ended"),
    [("Diverged", True), ("OutOfMemory", True), ("ConfigError", True), ("DataError", False), (None, False)],
)
def test_only_a_failure_of_the_configuration_is_final(tmp_path: Path, error_type: str | None, ended: bool) -> None:
    write(tmp_path, "results.json", {"status": "failed", "error": "why", "error_type": error_type})
    resumed = trial(0, state="failed")
    update_state(resumed, tmp_path, None)
    assert (resumed.has_ended, resumed.state) == (ended, "failed" if ended else "waiting")


def test_the_command_of_a_trial_has_the_options_of_its_sweep_but_not_its_axes(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, ["kikitori", "train", "sweep=lr", "--config-dir", "my conf", "-m"])
    found = sweep.run_command(trial(overrides=["sweep=lr", "optim.lr=1", "+callbacks.pruning={}"]))
    assert found == "kikitori train --config-dir 'my conf' optim.lr=1"


def test_the_failures_of_a_sweep_give_a_command_that_a_shell_can_run(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "a b", ["kikitori", "evaluate", "-m"])
    assert sweep.resume_command == f"kikitori evaluate -m 'resume_sweep={tmp_path}/a b'"


def test_the_log_counts_the_trials_that_ended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sweep = Sweep(tmp_path, [], [trial(0, state="failed", reason="of an earlier start"), trial(1, "3e-5")])
    sweep.num_trials = 2
    with caplog.at_level("INFO"), live_progress(sweep) as show:
        show()
        for number, state, value in (
            (0, "running", None),
            (0, "completed", 0.25),
            (1, "running", None),
            (1, "failed", None),
        ):
            sweep.trials[number].state, sweep.trials[number].value = state, value  # type: ignore[assignment]
            sweep.trials[number].reason = "oh" if state == "failed" else ""
            show()
    running, completed, _, failed = caplog.messages
    assert running == "trial 0 (optim.lr=1e-5) running"
    assert completed.startswith(
        "trial 0 (optim.lr=1e-5) completed, val CER 25.0 %; 1 of 2 trials ended, best val CER 25.0 %"
    )
    assert failed.startswith("trial 1 (optim.lr=3e-5) failed: oh; 2 of 2 trials ended, best val CER 25.0 %")


def test_the_time_left_is_that_of_the_trials_that_ended_now(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, [], [trial(n) for n in range(5)], num_trials=5)
    # One was completed by an earlier start and takes no time now; two that this one runs took 60 s.
    sweep.trials[0].state = "completed"
    pace = Pace()
    assert summary(sweep, pace) == "1 of 5 trials ended"
    for number in (1, 2):
        sweep.trials[number].state = "running"
    pace.ended(sweep)
    for number in (1, 2):
        sweep.trials[number].state = "completed"
    pace.began -= 60
    assert summary(sweep, pace) == "3 of 5 trials ended, about 60 s left"
    # 20 s later.
    pace.began, pace.last_end = pace.began - 20, pace.last_end - 20
    assert summary(sweep, pace) == "3 of 5 trials ended, about 40 s left"


def test_long_values_are_shortened_in_a_label(tmp_path: Path) -> None:
    assert trial(0, "0.0012520653814999472").label == "optim.lr=0.001252"
    assert trial(0, "tag(log)").label == "optim.lr=tag(log)"
    assert trial(0, "12345678901").label == "optim.lr=12345678901"


@pytest.mark.parametrize("height", [24, 60])
def test_a_live_table_fits_the_terminal_and_shows_what_runs(tmp_path: Path, height: int) -> None:
    from rich.console import Console

    states = ["running"] + ["completed"] * 20 + ["failed", "running"] + ["waiting"] * 27
    sweep = Sweep(tmp_path, [], [trial(n, state=state) for n, state in enumerate(states)], num_trials=50)
    console = Console(width=80, height=height)
    with console.capture() as shown:
        console.print(table(sweep, Pace(), height))
    lines = shown.get().splitlines()
    assert len(lines) < height
    assert sum("running" in line and "optim.lr=" in line for line in lines) == 2
    hidden = [int(word) for line in lines if line.startswith("Not shown") for word in line.split() if word.isdigit()]
    assert sum(hidden) + sum("optim.lr=" in line for line in lines) == 50
    with console.capture() as shown:
        console.print(table(sweep, Pace()))
    assert sum("optim.lr=" in line for line in shown.get().splitlines()) == 50


def test_the_live_table_cuts_no_label_at_80_columns(tmp_path: Path) -> None:
    from rich.console import Console

    label = "data.train_files=" + "録音" * 40
    swept = {"optim.lr": "0.001", "data.train_files": "録音" * 40}
    sweep = Sweep(tmp_path, [], [trial(0, swept=swept, state="completed", value=0.5, seconds=3700)])
    console = Console(width=80)
    with console.capture() as shown:
        console.print(table(sweep, Pace()))
    assert "…" not in shown.get()
    cells = "".join(line.split("│")[2].strip() for line in shown.get().splitlines() if line.startswith("│"))
    assert label in cells.replace(" ", "")
    assert "1:01:40" in shown.get()
