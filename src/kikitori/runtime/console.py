"""Terminal output: the shared console, progress in bars or lines, and fewer messages from libraries."""

import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Iterator
from statistics import fmean
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.segment import Segment
from rich.text import Text

from kikitori.runtime.distributed import is_main
from kikitori.runtime.text import CONTROL, printable

log = logging.getLogger(__name__)

# Regular expressions of warnings that do not concern a user: settings that kikitori chose on purpose.
IRRELEVANT_WARNINGS = (
    ".*srun. command is available.*",
    ".*does not have many workers.*",
    ".*Experiment logs directory.*",
    ".*smaller than the logging interval.*",
    ".*treespec.*",
    # A resumed run uses the same folder, and the order of its clips depends on the step alone.
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*resuming from a checkpoint that ended before the epoch ended.*",
)
VERBOSE_LOGGERS = (
    "httpx",
    "pytorch_lightning.utilities.rank_zero",
    "pytorch_lightning.accelerators.cuda",
    "lightning_fabric.utilities.rank_zero",
)

# Seconds between two lines about the same progress, at least.
LINE_EVERY_S = 30.0

# The attribute of a log record that repeats what a progress bar shows.
IN_BAR = "in_bar"


class Terminal(Console):
    """A console on which only rich itself moves the cursor or changes colours: what it shows is `printable`."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


console = Terminal()


def as_json(value: Any, indent: int | None = None) -> str:
    """Returns a value as JSON to be printed: characters that control a terminal are escaped, others are not."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def shows_bars() -> bool:
    """Returns whether the output goes to a terminal. In a file, progress bars would be noise."""
    return sys.stdout.isatty() and sys.stderr.isatty()


def duration(seconds: float | None) -> str:
    """42 s, 3 min, 2.5 h; a dash where it is unknown."""
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def progress_bar() -> Progress:
    """Returns a progress bar with a count and the time left, or its field `note` instead. It disappears when done.

    Outside a terminal, a task that takes long is reported in the log instead.
    """
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=16), MofNCompleteColumn(), _Left())
    return _Progress(*columns, console=console, disable=not (shows_bars() and is_main()), transient=True)


class _Left(ProgressColumn):
    def render(self, task: Task) -> Text:
        left = "" if task.time_remaining is None else f"{duration(task.time_remaining)} left"
        return Text(task.fields.get("note", left))


class _Progress(Progress):
    """Bars in a terminal; elsewhere lines such as `decoding clips: 40 %, 3 min left`."""

    def __init__(self, *columns: ProgressColumn, **settings: Any) -> None:
        super().__init__(*columns, **settings)
        # When a task was last reported, at first when it began.
        self._reported: dict[TaskID, float] = {}

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._report(task_id)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._report(task_id)

    def _report(self, task_id: TaskID) -> None:
        task, now = self._tasks[task_id], time.monotonic()
        reported = self._reported.setdefault(task_id, now)
        if not self.disable or not task.total or task.completed >= task.total or now - reported < LINE_EVERY_S:
            return
        self._reported[task_id] = now
        done, spent_s = task.completed / task.total, task.elapsed or 0.0
        left = f", {duration(spent_s / done - spent_s)} left" if done else ""
        log.info("%s: %.0f %%%s", task.description, 100 * done, left)


def quiet_libraries() -> None:
    """Silences libraries' messages about their defaults, and their progress bars; prints messages above our own.

    Processes of a run other than the first log warnings only.
    """
    quiet_transformers()
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(_Stdout())
            handler.addFilter(lambda record: not (shows_bars() and getattr(record, IN_BAR, False)))
    for name in VERBOSE_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", message)
    if not is_main():
        logging.disable(logging.INFO)


def quiet_transformers() -> None:
    """Silences the messages of transformers about its defaults, and its progress bars."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def silence(library: str) -> None:
    """Silences a library's warnings, where none concerns a user."""
    logging.getLogger(library).setLevel(logging.ERROR)


class _Stdout:
    """The present sys.stdout. While there is a progress bar, rich replaces that by a stream that prints above it."""

    def write(self, text: str) -> None:
        sys.stdout.write(text)

    def flush(self) -> None:
        sys.stdout.flush()


class Pace:
    """Estimates when training ends, from the steps and validations since it was started or resumed.

    step: the step from which it was. total: the last step. validate_every: steps between validations. validation_s:
    seconds of a validation, until there was one.
    """

    def __init__(self, step: int, total: float, validate_every: float, validation_s: float = 0.0) -> None:
        self.first_step = step + 1
        self.total, self.validate_every, self.validation_s = total, validate_every, validation_s
        self.validations_s: list[float] = []
        self._since = 0.0

    def step_done(self, step: int) -> None:
        """Starts the clock after the first step, which takes longer than the others."""
        if step == self.first_step:
            self._since = time.monotonic()

    def seconds_left(self, step: int) -> float | None:
        """Seconds until the end, after a step and before its validation; None after the first step, or without end."""
        if step <= self.first_step or not math.isfinite(self.total):
            return None
        spent_s = time.monotonic() - self._since - sum(self.validations_s)
        each_s = fmean(self.validations_s or [self.validation_s])
        validations = math.ceil(self.total / self.validate_every) - (step - 1) // self.validate_every
        return spent_s / (step - self.first_step) * (self.total - step) + validations * each_s
