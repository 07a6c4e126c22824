"""How a sweep's trials stand, while it runs: a live table in a terminal, a line a change elsewhere."""

import logging
import shlex
import time
from collections.abc import Callable, Iterator
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


@contextmanager
def shown(sweep: Sweep) -> Iterator[Callable[[], None]]:
    """Yields the function to call after each look at the trials."""
    states: dict[int, str] = {}
    # Where each running trial stood when it was first seen at a step, for the time left.
    since: dict[int, tuple[float, int]] = {}

    def tell_changes() -> None:
        for trial in sweep.trials:
            if states.get(trial.number, "waiting") != trial.state:
                value = f", val CER {100 * trial.value:.1f} %" if trial.value is not None else ""
                reason = f": {trial.reason.splitlines()[0]}" if trial.reason else ""
                log.info("trial %d (%s) %s%s%s", trial.number, trial.label, trial.state, value, reason)
                states[trial.number] = trial.state

    if not shows_bars():
        yield tell_changes
        tell_changes()
        return
    with Live(table(sweep, since), console=console, refresh_per_second=4) as live:
        yield lambda: live.update(table(sweep, since))
        live.update(table(sweep, since))


def table(sweep: Sweep, since: dict[int, tuple[float, int]]) -> Table:
    """The trials, one a row."""
    drawn = Table("trial", "", "state", title=str(sweep.folder), title_justify="left")
    for column in ("step", "val CER %", "time", "left"):
        drawn.add_column(column, justify="right")
    for trial in sweep.trials:
        seen = progress(sweep.folder / trial.folder) if trial.state == "running" else {}
        step = f"{seen['step']} / {seen['max_steps']}" if seen else ""
        cer = seen.get("val/cer") if seen else trial.value
        state = f"[{COLOURS[trial.state]}]{trial.state}[/]"
        spent = _clock(trial.seconds) if trial.seconds else ""
        cells = [step, "" if cer is None else f"{100 * cer:.1f}", spent, _left(trial, seen, since)]
        drawn.add_row(str(trial.number), Text(trial.label), state, *cells)
    return drawn


def _left(trial: Trial, seen: dict[str, int], since: dict[int, tuple[float, int]]) -> str:
    """Time to the last step, at the pace since the trial was first seen at one."""
    if not seen:
        return ""
    begun, first = since.setdefault(trial.number, (time.monotonic(), seen["step"]))
    done = seen["step"] - first
    return _clock((time.monotonic() - begun) / done * (seen["max_steps"] - seen["step"])) if done else ""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def conclude(sweep: Sweep) -> None:
    """What the sweep came to: the table of `kikitori compare`, and its page in the sweep's folder."""
    if not sweep.trials:
        return
    tables, others = build_leaderboards([str(sweep.folder)])
    if not tables:
        return
    from kikitori.compare.page import write_page  # takes a second to import

    formats.print_tables(tables, others)
    path = sweep.folder / "report.html"
    write_page(path, tables, others, shlex.join(sweep.command))
    console.print(f"The page is {path}", soft_wrap=True)


def failure_report(sweep: Sweep, failures: list[Trial]) -> str:
    """Every failure with its reason and log, and how to go on."""
    lines = [f"{len(failures)} of {len(sweep.trials)} trials did not end well"]
    for trial in failures:
        reason = (trial.reason or trial.state).replace("\n", "\n      ")
        lines += [f"  trial {trial.number} ({trial.label}): {reason}", f"      log: {sweep.folder / trial.log}"]
    return "\n".join([*lines, f"The same command with resume_sweep={sweep.folder} runs these alone."])
