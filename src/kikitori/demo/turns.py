"""One recording is read at a time: the others wait for their turn, and their visitors see how many are before them."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kikitori.audio.formats import AudioError
from kikitori.runtime.errors import KikitoriError, one_line, remedy_of

log = logging.getLogger(__name__)

Event = dict[str, Any]
# What a reading calls with each event; it raises `Cancelled` where nobody waits for it any more.
Report = Callable[[Event], None]


class Cancelled(Exception):  # noqa: N818
    """The visitor has gone, so the rest of the recording is not read."""


class Turns:
    """A queue in front of one thread, in which all models run."""

    def __init__(self) -> None:
        self._waiting: list[object] = []
        self._changed = asyncio.Condition()
        self._thread = ThreadPoolExecutor(1, "reading")
        self._running: set[threading.Event] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    async def events(self, work: Callable[[Report], None]) -> AsyncIterator[Event]:
        """Waits for a turn, then yields the events of a work; the last may be its error, in words.

        Until then it yields how many are before it. Closing the iterator cancels the work and frees its place.
        """
        ticket = object()
        self._waiting.append(ticket)
        try:
            while before := self._waiting.index(ticket):
                yield {"before": before}
                async with self._changed:
                    await self._changed.wait_for(lambda: self._waiting.index(ticket) != before)
            async for event in self._run(work):
                yield event
        finally:
            self._waiting.remove(ticket)
            async with self._changed:
                self._changed.notify_all()

    async def _run(self, work: Callable[[Report], None]) -> AsyncIterator[Event]:
        loop, stop = asyncio.get_running_loop(), threading.Event()
        events: asyncio.Queue[Event | None] = asyncio.Queue()

        def send(event: Event | None) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        def report(event: Event) -> None:
            if stop.is_set():
                raise Cancelled
            send(event)

        def run() -> None:
            try:
                work(report)
            except Cancelled:
                return
            except Exception as error:  # whatever a recording does to a model, the page goes on
                send({"error": describe(error)})
            send(None)

        self._running.add(stop)
        self._thread.submit(run)
        try:
            while (event := await events.get()) is not None:
                yield event
        finally:
            stop.set()
            self._running.discard(stop)

    def close(self) -> None:
        """Cancels what is running, and waits until the model has returned."""
        for stop in self._running:
            stop.set()
        self._thread.shutdown(cancel_futures=True)


def describe(error: Exception) -> str:
    """What went wrong, as a sentence for the page; the terminal has the traceback of what no user can fix."""
    if isinstance(error, AudioError):
        return f"The recording {error}."
    if isinstance(error, KikitoriError):
        return f"{error}."
    log.error("a request to the page failed", exc_info=error)
    return f"{remedy_of(error) or f'An error that should not happen: {one_line(error)}'} (the terminal has more)."
