"""Terminal output: the shared console, progress bars, and fewer messages from libraries."""

import logging
import sys
import warnings

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kikitori.runtime.distributed import is_main

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

console = Console()


def shows_bars() -> bool:
    """Returns whether the output goes to a terminal. In a file, progress bars would be noise."""
    return sys.stdout.isatty() and sys.stderr.isatty()


def progress_bar() -> Progress:
    """Returns a progress bar with a count and the remaining time. It disappears when done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not shows_bars(), transient=True)


def quiet_libraries() -> None:
    """Silences libraries' messages about their defaults, and their progress bars outside a terminal.

    Processes of a run other than the first log warnings only.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    if not shows_bars():
        transformers.utils.logging.disable_progress_bar()
    for name in VERBOSE_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", message)
    if not is_main():
        logging.disable(logging.INFO)
