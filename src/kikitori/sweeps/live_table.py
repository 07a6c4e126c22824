"""The state of a sweep's trials while it runs: a live table in a terminal, one log line per change elsewhere."""

import logging
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.live import Live
from rich.table import Table
from rich.text import Text

from kikitori.compare import formats
from kikitori.compare.leaderboard import build_leaderboards
from kikitori.runtime.console import console, shows_bars
from kikitori.sweeps.trials import Sweep, Trial, progress

log = logging.getLogger(__name__)

COLOURS = {"running": "cyan", "completed": "green", "pruned": "yellow", "failed": "red", "waiting": "dim"}
# Lines of the live table that are no trials: title, rules, header, caption, and some for long labels.
TABLE_LINES = 10


class Pace:
    """Estimates the time left: for the sweep from the trials that ended, for a trial from its steps.

    Only what happened since now counts; a trial that an earlier start left failed is still to be run.
    """

    def __init__(self) -> None:
        self.began = self.last_end = time.monotonic()
        self.num_ended = 0
        self.started: set[int] = set()
        # When each running trial was first seen, and at which step.
        self.first_seen: dict[int, tuple[float, int]] = {}

    def ended(self, sweep: Sweep) -> list[Trial]:
        """The trials that need no further run by this process."""
        self.started |= {trial.number for trial in sweep.trials if trial.state == "running"}
        failed = [trial for trial in sweep.trials if trial.state == "failed" and trial.number in self.started]
        return [trial for trial in sweep.trials if trial.has_ended or trial in failed]

    def sweep_seconds(self, sweep: Sweep) -> float | None:
        """Seconds until the last trial ends, None while that cannot be estimated."""
        ended = self.ended(sweep)
        num_now = sum(trial.number in self.started for trial in ended)
        if num_now > self.num_ended:
            self.num_ended, self.last_end = num_now, time.monotonic()
        if not num_now or sweep.num_trials is None:
            return None
        per_trial = (self.last_end - self.began) / num_now
        return max(0.0, per_trial * (sweep.num_trials - len(ended)) - (time.monotonic() - self.last_end))

    def trial_seconds(self, trial: Trial, seen: Mapping[str, int]) -> float | None:
        """Seconds until a trial's last step, None while that cannot be estimated."""
        if not seen:
            return None
        began, first = self.first_seen.setdefault(trial.number, (time.monotonic(), seen["step"]))
        steps = seen["step"] - first
        return (time.monotonic() - began) / steps * (seen["max_steps"] - seen["step"]) if steps else None


@contextmanager
def live_progress(sweep: Sweep) -> Iterator[Callable[[], None]]:
    """Shows the trials while the block runs. Yields the function that shows the current state."""
    # The failures of an earlier start are run again, and are no news.
    states: dict[int, str] = {trial.number: trial.state for trial in sweep.trials if trial.state == "failed"}
    pace = Pace()

    def log_changes() -> None:
        for trial in sweep.trials:
            if states.get(trial.number, "waiting") != trial.state:
                states[trial.number] = trial.state
                value = f", val CER {formats.percent(trial.value)} %" if trial.value is not None else ""
                reason = f": {trial.reason.splitlines()[0]}" if trial.reason else ""
                counts = f"; {summary(sweep, pace)}" if trial in pace.ended(sweep) else ""
                log.info("trial %d (%s) %s%s%s%s", trial.number, trial.label, trial.state, value, reason, counts)

    if not shows_bars():
        yield log_changes
        log_changes()
        return
    with Live(table(sweep, pace, console.height), console=console, refresh_per_second=4) as live:
        yield lambda: live.update(table(sweep, pace, console.height))
        live.update(table(sweep, pace))


def summary(sweep: Sweep, pace: Pace) -> str:
    """How many trials have ended, the best validation CER, and the time left: 3 of 6 trials ended, about 4 min left."""
    of = f" of {sweep.num_trials}" if sweep.num_trials else ""
    first = sweep.best()
    best = f", best val CER {formats.percent(first.value)} %" if first and first.value is not None else ""
    seconds = pace.sweep_seconds(sweep)
    left = f", about {formats.duration(seconds)} left" if seconds else ""
    return f"{len(pace.ended(sweep))}{of} trials ended{best}{left}"


def table(sweep: Sweep, pace: Pace, height: int | None = None) -> Table:
    """The trials, one per row.

    height: lines of the terminal; ended and waiting trials that do not fit are only counted.
    """
    drawn = Table(title=Text(f"{sweep.folder}\n{summary(sweep, pace)}"), title_justify="left", caption_justify="left")
    drawn.add_column("trial", justify="right", no_wrap=True)
    drawn.add_column("", overflow="fold")
    for column in ("state", "step", "val CER %", "time", "left"):
        drawn.add_column(column, justify="left" if column == "state" else "right", no_wrap=True)
    shown = _shown(sweep, height)
    for trial in shown:
        seen = progress(sweep.folder / trial.folder) if trial.state == "running" else {}
        step = f"{seen['step']} / {seen['max_steps']}" if seen else ""
        cer = seen.get("val/cer") if seen else trial.value
        state = f"[{COLOURS[trial.state]}]{trial.state}[/]"
        spent = _clock(trial.seconds) if trial.seconds else ""
        left = pace.trial_seconds(trial, seen)
        cells = [step, "" if cer is None else formats.percent(cer), spent, "" if left is None else _clock(left)]
        drawn.add_row(str(trial.number), Text(trial.label), state, *cells)
    hidden = Counter(trial.state for trial in sweep.trials if trial not in shown)
    if hidden:
        drawn.caption = "Not shown: " + ", ".join(f"{count} {state}" for state, count in hidden.items())
    return drawn


def _shown(sweep: Sweep, height: int | None) -> list[Trial]:
    """The trials that fit: running ones first, then the latest."""
    room = len(sweep.trials) if height is None else max(1, height - TABLE_LINES)
    urgent = sorted(sweep.trials, key=lambda trial: (trial.state == "running", trial.state != "waiting", trial.number))
    numbers = {trial.number for trial in urgent[-room:]}
    return [trial for trial in sweep.trials if trial.number in numbers]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def print_summary(sweep: Sweep) -> None:
    """Prints the table of `kikitori compare` for the sweep, and writes its page into the sweep's folder."""
    if not sweep.trials:
        return
    tables, others = build_leaderboards([str(sweep.folder)])
    if not tables:
        return
    from kikitori.compare.page import write_page  # takes a second to import

    formats.print_tables(tables, others)
    path = sweep.folder / "report.html"
    write_page(path, tables, others, shlex.join(sweep.command))
    lines = [f"Page: {path}"]
    if any(sweep.folder.glob("*/wandb/offline-run-*")):
        lines.append(f"Weights & Biases: wandb sync {shlex.quote(str(sweep.folder))}/*/wandb/offline-run-*")
    if best := sweep.best():
        lines.append(
            f"Lowest CER of one trial: {best.number} ({best.label}); to run it again: {sweep.run_command(best)}"
        )
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def failure_report(sweep: Sweep, failures: list[Trial], is_search: bool = False) -> str:
    """Lists every failure with its reason and log, and what runs them again.

    is_search: whether the trials are those of a study, which keeps what it tried although its folder is deleted.
    """
    lines = [f"{len(failures)} of {len(sweep.trials)} trials are not completed"]
    for trial in failures:
        reason = (trial.reason or trial.state).replace("\n", "\n      ")
        lines += [f"  trial {trial.number} ({trial.label}): {reason}", f"      log: {sweep.folder / trial.log}"]
    repeatable = [str(trial.number) for trial in failures if trial.is_repeatable]
    if repeatable:
        retry = "" if is_search else " (delete a folder to retry)"
        lines.append(f"Would fail again, so a resume leaves them: {', '.join(repeatable)}{retry}")
    if len(repeatable) < len(failures):
        lines.append(f"Run {'the others' if repeatable else 'these'} again: {sweep.resume_command}")
    return "\n".join(lines)
