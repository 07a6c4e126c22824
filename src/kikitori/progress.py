"""Progress bars that a terminal shows and a pipe does not."""

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console()


def shows_bars() -> bool:
    """Whether a person watches: bars written to a file are noise."""
    return sys.stdout.isatty() and sys.stderr.isatty()


def progress_bar() -> Progress:
    """A bar with a count and the time left; gone when done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not shows_bars(), transient=True)
