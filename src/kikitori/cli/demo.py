"""`kikitori demo`: a page on this machine to try tuned models next to their base.

Modules that take seconds to import are imported where they are used, so that --help and a wrong option are answered
fast.
"""

import argparse
import asyncio
import errno
import logging
import os
import signal
import socket
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from kikitori.runtime.errors import ConfigError, KikitoriError, describe_error

if TYPE_CHECKING:
    from aiohttp import web

# Only this machine's own programs reach it.
HOST, PORT = "127.0.0.1", 7865
# Seconds that a request has to end when the server does.
GRACE_S = 1.0
# Connections at a time. A browser keeps six; other programs must not use up what this process may open.
MAX_CONNECTIONS = 100


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="kikitori demo",
        description="Serve a page on this machine, to speak into or drop a file on: it shows the texts of the tuned "
        "models and of their base side by side, and saves recordings with corrected texts to train on.",
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="RUN",
        help="folders of runs, models or adapters, names on the Hugging Face Hub, or references (hub:..., wandb:...)",
    )
    parser.add_argument("--base", help="model to compare with (default: the base that the run recorded)")
    parser.add_argument("--port", type=int, default=PORT, help=f"port on {HOST}; 0: any free one (default: {PORT})")
    parser.add_argument(
        "--save",
        type=Path,
        default=Path("recordings"),
        metavar="FOLDER",
        help="where recordings are saved with their corrected texts, for data=manifest (default: recordings)",
    )
    parser.add_argument("--browser", action="store_true", help="also open the page in the browser of this machine")
    if wrong := [word for word in sys.argv[1:] if word.startswith(("base=", "port=", "save="))]:
        parser.error(f"{wrong[0]}: options are given as --{wrong[0].replace('=', ' ', 1)}")
    arguments = parser.parse_args()
    if not 0 <= arguments.port <= 65_535:
        parser.error(f"--port {arguments.port}: must be a number from 0 to 65535")
    return arguments


def main() -> None:
    """Loads the models and serves the page until Ctrl-C."""
    arguments = parse()
    try:
        # Before the models, which take seconds to load.
        with listen(arguments.port) as listener:
            serve(arguments, listener)
    except KikitoriError as error:
        sys.exit(describe_error(error))


def listen(port: int) -> socket.socket:
    """Opens the port. Raises ConfigError if another program uses it."""
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        fault = "is in use" if error.errno == errno.EADDRINUSE else "may not be used"
        raise ConfigError(f"--port {port} {fault}; give another one, or 0 for any that is free") from error


def serve(arguments: argparse.Namespace, listener: socket.socket) -> None:
    """Serves the page on a socket that listens."""
    from kikitori.demo.access import Access
    from kikitori.demo.examples import find_examples
    from kikitori.demo.models import load_models
    from kikitori.demo.saving import check_folder
    from kikitori.demo.server import Server
    from kikitori.runtime.console import quiet_transformers

    quiet_transformers()
    check_folder(arguments.save)
    models, notes = load_models(arguments.models, arguments.base)
    examples, why = find_examples(arguments.models)
    for note in [*notes, *([f"no examples: {why}"] if why else [])]:
        print(note, file=sys.stderr)
    access = Access(listener.getsockname()[1])
    server = Server(models, examples, why, arguments.save, access)
    for model in models:
        print(f"{'base' if model.is_base else 'model'}: {model.title}")
    address = f"{access.address}#{access.key}"
    print(f"open {address}\nCtrl-C ends it", flush=True)
    if arguments.browser:
        webbrowser.open(address)
    asyncio.run(run_until_signal(server.app, listener))
    print("ended", file=sys.stderr)


class _Refused(asyncio.Protocol):
    """A connection that is closed at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


async def run_until_signal(app: "web.Application", listener: socket.socket) -> None:
    """Serves until SIGINT or SIGTERM; a second one ends the process at once."""
    from aiohttp import web

    ended, loop = asyncio.Event(), asyncio.get_running_loop()

    def end(number: int) -> None:
        if ended.is_set():
            os._exit(128 + number)
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end, number)
    # It would log each damaged request and each visitor who leaves; what fails in a request is logged by the page.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=GRACE_S)
    await runner.setup()
    server = runner.server
    assert server

    def accept() -> asyncio.Protocol:
        return server() if len(server.connections) < MAX_CONNECTIONS else _Refused()

    accepting = await loop.create_server(accept, sock=listener)
    try:
        await ended.wait()
    finally:
        accepting.close()
        await runner.cleanup()
