"""Weights & Biases unreachable, from the start or during the run: the run neither waits nor loses anything."""

import csv
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from harness import (
    FULL,
    Miss,
    Process,
    completed,
    finish,
    last_lines,
    must_equal,
    results,
    rows_of,
    start,
    variant_of,
)

KEY = {"WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567", "WANDB_MODE": "online"}
# Long enough that a few seconds at the start are less than 5 %.
LONG = ["trainer.max_steps=4000", "validation.every_steps=500"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        name = json.loads(body).get("operationName") if self.path == "/graphql" else None
        if name != "UpsertBucket" or self._is_silent():
            self._answer({"data": {"model": None}})
            return
        project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
        bucket = {"id": "b", "name": json.loads(body)["variables"]["name"], "displayName": "n", "project": project}
        self._answer({"data": {"upsertBucket": {"bucket": bucket | {"config": "{}"}, "inserted": True}}})
        self.server.begun.set()  # type: ignore[attr-defined]

    def _is_silent(self) -> bool:
        server: Any = self.server
        return server.never_answers or server.begun.is_set()

    def _answer(self, reply: dict[str, Any]) -> None:
        if self._is_silent():
            threading.Event().wait()
        content = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def silent_server(after_the_start: bool) -> Iterator[str]:
    """Yield the URL of a W&B server that accepts all requests and never answers: at once, or once a run has started."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.never_answers, server.begun = not after_the_start, threading.Event()
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def tracker_gone(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> float:
        with silent_server(after_the_start=number % 2 == 1) as address:
            process = trained(place / "gone", WANDB_BASE_URL=address, **KEY)
            if process.poll() != 0:
                raise Miss(f"it ended with {process.poll()}: {last_lines(process.printed())}")
        check(process)
        return time.monotonic() - process.began

    def note(found: list[float]) -> str:
        return f"exit code 0, no metric lost, at most {max(found):.0f} s in total"

    row = "Weights & Biases accepts all requests and never answers, from the start or once the run has started"
    return rows_of(row, count, seed, folder, one, note)


def tracker_gone_pairs(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> float:
        with silent_server(after_the_start=False) as address:
            kinds = [("gone", {"WANDB_BASE_URL": address, **KEY}), ("offline", {"WANDB_MODE": "offline"})]
            took = {}
            for name, environment in kinds if number % 2 else reversed(kinds):
                begun = time.monotonic()
                process = trained(place / name, *LONG, **environment)
                took[name] = time.monotonic() - begun
                check(process)
        if took["gone"] > 1.05 * took["offline"]:
            raise Miss(f"{took['gone']:.1f} s, but offline {took['offline']:.1f} s")
        return took["gone"] / took["offline"] - 1

    def note(found: list[float]) -> str:
        return f"{100 * sorted(found)[len(found) // 2]:+.1f} % median, {100 * max(found):+.1f} % at most"

    row = "such a run compared with an offline run: at most 5 % slower"
    return rows_of(row, count, seed, folder, one, note)


def network_gone(count: int, seed: int, folder: Path) -> dict[str, Any]:
    def one(number: int, rng: random.Random, place: Path) -> None:
        variant, noted = variant_of(number), place / "noted"
        finish(place / "run", *variant, faults={"no_network": {"path": str(noted)}}, HF_HUB_OFFLINE="0")
        if noted.exists():
            raise Miss(f"it tried to use the network: {noted.read_text().splitlines()[0]}")
        must_equal(place / "run", variant)

    row = "no network, and so no Hub, from the first step on: nothing tries to use it"
    return rows_of(row, count, seed, folder, one)


def trained(run: Path, *arguments: str, **environment: str) -> Process:
    """Train in a plain process with the W&B logger, whose sender is a separate process."""
    process = start(run, *FULL, "logger=wandb", "trainer.log_every_n_steps=5", *arguments, plain=True, **environment)
    process.wait(400)
    return process


def check(process: Process) -> None:
    """Check that every metric is in the run's folder, and that the command that syncs it is printed."""
    run = process.folder
    if not completed(run):
        raise Miss(f"results.json has status {results(run).get('status')}")
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    config = results(run)["config"]
    steps, every = config["trainer"]["max_steps"], config["validation"]["every_steps"]
    expected = {"train/loss": steps // 5, "val/loss": steps // every, "val/cer": steps // every}
    found = {key: sum(bool(row.get(key)) for row in rows) for key in expected}
    if found != expected or len(results(run)["history"]) != steps // every:
        raise Miss(f"metrics.csv has {found} rows, expected {expected}")
    if "wandb sync " not in process.printed():
        raise Miss("no `wandb sync` command is printed")
    if not list(run.glob("wandb/*run-2*/*.wandb")):
        raise Miss("no W&B file is left that could be synced later")
