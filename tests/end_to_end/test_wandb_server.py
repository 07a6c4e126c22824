"""Online trials with a real W&B server on loopback.

They need the package `openwandb`. Its licence is non-commercial, so it is not a dependency: install it by hand if that
licence suits you. It stores neither a run's group nor its exit code, so test_wandb.py tests those on an offline run.
"""

import base64
import json
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import SMALL, kikitori

pytestmark = pytest.mark.wandb_server

# The API key of the server's first user in its documentation, and that user's team.
KEY, ENTITY = "local" + 40 * "0", "default"
STARTS_WITHIN_S = 60


class Server:
    """A running server: the environment variables that point to it, and the files it stores of a run."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.environment = {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}

    def get(self, path: str) -> str:
        login = base64.b64encode(f"api:{KEY}".encode()).decode()
        request = urllib.request.Request(f"{self.url}/{path}", headers={"Authorization": f"Basic {login}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()

    def file(self, run_id: str, name: str) -> str:
        return self.get(f"files/{ENTITY}/kikitori/{run_id}/{name}")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("online")


@pytest.fixture(scope="module")
def server(cache: Path) -> Iterator[Server]:
    pytest.importorskip("openwandb", reason="openwandb is not installed; its licence excludes it from the dependencies")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "openwandb", "serve", "--host", "127.0.0.1", "--port", str(port)]
    with (cache / "server.log").open("w") as log:
        process = subprocess.Popen([*command, "--data-dir", str(cache / "server")], stdout=log, stderr=log)
        try:
            running = Server(port)
            wait_for(running)
            yield running
        finally:
            process.terminate()
            process.wait()


def wait_for(server: Server) -> None:
    end = time.monotonic() + STARTS_WITHIN_S
    while True:
        try:
            server.get("api/v1/debug/headers")
            return
        except OSError:
            assert time.monotonic() < end, "the server did not answer"
            time.sleep(0.2)


def check(server: Server, folder: Path) -> None:
    """Check that the server has the configuration, history, summary and table of a run."""
    run_id = (folder / "wandb/run-id").read_text()
    results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    config = yaml.safe_load(server.file(run_id, "config.yaml"))
    assert {key: config[key]["value"] for key in results["config"]} == results["config"]
    assert config["versions"]["value"] == results["versions"]

    cers = [row["val/cer"] for row in results["history"]]
    history = [json.loads(line) for line in server.file(run_id, "wandb-history.jsonl").splitlines() if line]
    assert [row["val/cer"] for row in history if "val/cer" in row] == pytest.approx(cers)
    assert sum("train/grad_norm" in row and "train/clips_per_s" in row for row in history) == 2

    summary = json.loads(server.file(run_id, "wandb-summary.json"))
    assert summary["val/cer"] == pytest.approx({"min": min(cers), "last": cers[-1]})
    assert summary["after/test/cer"] == results["scores"]["after"]["test"]["cer"]
    assert summary["status"] == "completed"

    table = json.loads(server.file(run_id, summary["validation_sample"]["path"]))
    assert table["columns"][:4] == ["audio", "reference", "before", "after"]
    lines = (folder / "predictions/validation_after.jsonl").read_text(encoding="utf-8").splitlines()
    assert {row[1] for row in table["data"]} == {json.loads(line)["reference"] for line in lines}


def test_an_online_trial_arrives(server: Server, cache: Path) -> None:
    line = [*SMALL, "logger=wandb", "trainer.log_every_n_steps=2", "hydra.run.dir=online"]
    done = kikitori("train", *line, cache=cache, WANDB_MODE="online", **server.environment)
    assert done.returncode == 0, done.stderr
    assert f"{server.url}/{ENTITY}/kikitori/runs/" in done.stdout
    check(server, cache / "online")


def test_an_offline_trial_arrives_by_the_command_that_it_printed(server: Server, cache: Path) -> None:
    line = [*SMALL, "logger=wandb", "trainer.log_every_n_steps=2", "hydra.run.dir=offline"]
    done = kikitori("train", *line, cache=cache)
    assert done.returncode == 0, done.stderr
    (printed,) = [line for line in done.stdout.splitlines() if "wandb sync " in line]
    program, *arguments = shlex.split(printed[printed.index("wandb sync ") :])
    command = [str(Path(sys.executable).with_name(program)), *arguments]
    synced = subprocess.run(
        command, capture_output=True, text=True, cwd=cache, env={**os.environ, **server.environment}
    )
    assert synced.returncode == 0, synced.stderr
    check(server, cache / "offline")
