"""Progress bars that a terminal shows and a pipe does not."""

import logging
import sys
import warnings

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kikitori.runtime.distributed import is_main

console = Console()


def shows_bars() -> bool:
    """Whether a person watches: bars written to a file are noise."""
    return sys.stdout.isatty() and sys.stderr.isatty()


def progress_bar() -> Progress:
    """A bar with a count and the time left; gone when done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not shows_bars(), transient=True)


def quiet_libraries() -> None:
    """Keep the libraries' hints about their own defaults, and their bars where nobody watches, out of the output."""
    import transformers

    transformers.logging.set_verbosity_error()
    if not shows_bars():
        transformers.utils.logging.disable_progress_bar()
    for name in ("pytorch_lightning.utilities.rank_zero", "pytorch_lightning.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)
    for hint in (
        ".*srun. command is available.*",
        ".*does not have many workers.*",
        ".*Experiment logs directory.*",
        ".*smaller than the logging interval.*",
        ".*treespec.*",
        ".*custom batch sampler .ScoringBatches.*",
        ".*predict returned None.*",
        # A run that goes on does so in its folder, and its order of clips is a function of the step.
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*resuming from a checkpoint that ended before the epoch ended.*",
    ):
        warnings.filterwarnings("ignore", hint)
    if not is_main():
        logging.disable(logging.INFO)
