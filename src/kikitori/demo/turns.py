"""Recordings are read in turns: one step of one recording at a time, so that a long one keeps nobody waiting."""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kikitori.audio.formats import AudioError
from kikitori.runtime.errors import KikitoriError, one_line, remedy_of

log = logging.getLogger(__name__)

Event = dict[str, Any]
# What a reading calls now and then within a step; it raises `Cancelled` where nobody waits for the recording any more.
Check = Callable[[], None]
# The steps of reading a recording: each yields an event.
Work = Callable[[Check], Generator[Event, None, None]]


class Cancelled(Exception):  # noqa: N818
    """The visitor has gone, so the rest of the recording is not read."""


class Turns:
    """One thread, in which all models run. The recordings that are being read take it in turns, step by step."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "reading")
        self._stops: list[threading.Event] = []

    async def events(self, work: Work) -> AsyncGenerator[Event, None]:
        """Yields the events of a work; the first is how many others are being read, the last may be an error in words.

        Closing the generator cancels the work, of which at most the present piece is still read.
        """
        loop, stop = asyncio.get_running_loop(), threading.Event()

        def check() -> None:
            if stop.is_set():
                raise Cancelled

        steps = work(check)
        if self._stops:
            yield {"others": len(self._stops)}
        self._stops.append(stop)
        try:
            # The thread takes steps in the order in which they were asked for.
            while event := await loop.run_in_executor(self._thread, _step, steps):
                yield event
        finally:
            stop.set()
            self._stops.remove(stop)
            self._thread.submit(steps.close)

    def close(self) -> None:
        """Cancels what is being read, and waits until the models have returned."""
        for stop in self._stops:
            stop.set()
        self._thread.shutdown()


def _step(steps: Generator[Event, None, None]) -> Event | None:
    """The next event; None after the last."""
    try:
        return next(steps, None)
    except Cancelled:
        return None
    except Exception as error:  # whatever a recording does to a model, the page goes on
        return {"error": describe(error)}


def is_expected(error: Exception) -> bool:
    """Whether a recording or a setting is at fault, and not the program."""
    return isinstance(error, AudioError | KikitoriError)


def describe(error: Exception) -> str:
    """What went wrong, as a sentence for the page; the terminal has the traceback of what no user can fix."""
    if isinstance(error, AudioError):
        return f"The recording cannot be read: {error}."
    if isinstance(error, KikitoriError):
        return f"{error}."
    if remedy := remedy_of(error):
        return f"{remedy[:1].upper()}{remedy[1:]}."
    log.error("a request to the page failed", exc_info=error)
    return f"An error that should not happen: {one_line(error)} (the terminal has more)."
