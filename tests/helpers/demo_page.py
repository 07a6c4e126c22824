"""A demo page's server in this process, and a visitor of it that is no browser."""

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from aiohttp import web

from kikitori.demo.access import KEY, Access
from kikitori.demo.examples import Example
from kikitori.demo.models import ShownModel
from kikitori.demo.server import Server


class Visitor:
    """Sends requests as the page does, with other headers where a test says so."""

    def __init__(self, server: Server, access: Access, port: int) -> None:
        self.server, self.access, self.port = server, access, port

    @property
    def address(self) -> str:
        return f"{self.access.address}#{self.access.key}"

    def open(self, method: str, path: str, body: Any = None, **headers: str) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        own = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, {KEY: self.access.key, **own})
        return connection

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> http.client.HTTPResponse:
        response = self.open(method, path, body, **headers).getresponse()
        response.text = response.read().decode()  # type: ignore[attr-defined]
        return response

    def read(self, recording: bytes, path: str = "/api/read") -> list[dict[str, Any]]:
        """The events of reading a recording."""
        response = self.request("POST", path, recording)
        return [json.loads(line) for line in response.text.splitlines()]  # type: ignore[attr-defined]

    def save(self, recording: bytes, text: str) -> tuple[int, dict[str, Any]]:
        """The status and the answer of saving a recording."""
        line, disposition = uuid4().hex, 'Content-Disposition: form-data; name="{}"'
        body = f"--{line}\r\n{disposition.format('text')}\r\n\r\n{text}\r\n".encode()
        body += f'--{line}\r\n{disposition.format("audio")}; filename="a"\r\n\r\n'.encode()
        body += recording + f"\r\n--{line}--\r\n".encode()
        form = f"multipart/form-data; boundary={line}"
        response = self.request("POST", "/api/save", body, **{"Content-Type": form})
        return response.status, json.loads(response.text)  # type: ignore[attr-defined]


@contextmanager
def serving(
    models: Sequence[ShownModel], save: Path, examples: Sequence[Example] = (), why: str = ""
) -> Iterator[Visitor]:
    """Serves the page in a thread until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    access = Access(port)
    loop, ready, visitors = asyncio.new_event_loop(), threading.Event(), list[Visitor]()

    async def serve() -> None:
        server = Server(models, examples, why, save, access)
        runner = web.AppRunner(server.app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        visitors.append(Visitor(server, access, port))
        ready.set()
        await ended.wait()
        await runner.cleanup()

    ended = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=[serve()])
    thread.start()
    ready.wait()
    try:
        yield visitors[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()
