"""Progress through recordings on stderr, with the time that is left."""

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.cells import set_cell_size

from kikitori.runtime.console import duration
from kikitori.runtime.text import printable_line

# Seconds between two lines where stderr is no terminal, and between two changes of the line of a terminal.
LINE_EVERY_S, CHANGE_EVERY_S = 60.0, 0.2


class Progress:
    """A line that is overwritten in a terminal, elsewhere a line a minute.

    Recordings count by their seconds. Of one that was not opened yet these are estimated by its bytes, as of those with
    its suffix that were. sizes: the bytes of each recording.
    """

    def __init__(self, sizes: Mapping[Path, int]) -> None:
        self.sizes = dict(sizes)
        self.seconds: dict[Path, float] = {}
        self.finished, self.done_s, self.read_s = 0, 0.0, 0.0
        self.began = self.shown = time.monotonic()

    def opened(self, path: Path, seconds: float, done_s: float = 0.0) -> None:
        """Sets the seconds of a recording, and how many of them were read in an earlier call."""
        self.seconds[path] = seconds
        self.done_s += done_s

    def closed(self) -> None:
        """Counts a recording as finished, or as failed."""
        self.finished += 1

    def advance(self, seconds: float) -> None:
        """Adds seconds that were read now."""
        self.done_s += seconds
        self.read_s += seconds
        is_terminal, now = sys.stderr.isatty(), time.monotonic()
        if now - self.shown < (CHANGE_EVERY_S if is_terminal else LINE_EVERY_S):
            return
        self.shown = now
        if is_terminal:
            # A line that is folded could not be overwritten.
            _print("\r\033[K" + set_cell_size(self.line(), os.get_terminal_size(2).columns - 1))
        else:
            _print(self.line() + "\n")

    def clear(self) -> None:
        """Removes the line from a terminal."""
        if sys.stderr.isatty():
            _print("\r\033[K")

    def line(self) -> str:
        """talk.mp3: 34 % of 3.0 h, 42 min left; of several recordings how many are finished in place of the name."""
        total_s = max(self.total_s(), self.done_s)
        many = len(self.sizes) > 1
        name = f"{self.finished} of {len(self.sizes)} files" if many else next(iter(self.sizes)).name
        spent_s = time.monotonic() - self.began
        left_s = (total_s - self.done_s) * spent_s / self.read_s if self.read_s else None
        share = 100 * self.done_s / total_s if total_s else 0.0
        return f"{printable_line(name)}: {share:.0f} % of {duration(total_s)}, {duration(left_s)} left"

    def total_s(self) -> float:
        """The seconds of all recordings, estimated for those that were not opened yet."""
        unknown = [path for path in self.sizes if path not in self.seconds]
        return sum(self.seconds.values()) + sum(self.sizes[path] * self._seconds_a_byte(path) for path in unknown)

    def _seconds_a_byte(self, path: Path) -> float:
        like = [known for known in self.seconds if known.suffix == path.suffix] or [*self.seconds]
        size = sum(self.sizes[known] for known in like)
        return sum(self.seconds[known] for known in like) / size if size else 0.0


def _print(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)
