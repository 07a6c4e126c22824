"""Errors of `kikitori demo`, and its end."""

import asyncio
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from aiohttp import web

from kikitori.cli import demo
from kikitori.model.whisper import Whisper


def refusal(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["kikitori demo", *arguments])
    with pytest.raises(SystemExit) as caught:
        demo.main()
    return str(caught.value)


def test_a_busy_port_is_answered_with_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert refusal(monkeypatch, "run", "--port", str(port)) == (
            f"ConfigError: --port {port} is in use; give another one, or 0 for any that is free"
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--port", "70000"], "--port 70000: must be a number from 0 to 65535"),
        (["run", "port=1"], "port=1: options are given as --port 1"),
        ([], "the following arguments are required: RUN"),
    ],
)
def test_a_wrong_option_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert refusal(monkeypatch, *words) == "2"
    assert message in capsys.readouterr().err


def test_a_folder_without_a_model_and_a_folder_that_is_a_file_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert refusal(monkeypatch, str(tmp_path / "none"), "--port", "0").startswith(
        f"ModelError: {tmp_path}/none does not exist; give the folder of a run"
    )
    (tmp_path / "file").touch()
    message = refusal(monkeypatch, "run", "--port", "0", "--save", str(tmp_path / "file"))
    assert message == f"DataError: --save {tmp_path}/file is a file; give a folder"


def test_many_connections_and_damaged_requests_fill_neither_the_process_nor_its_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(demo, "MAX_CONNECTIONS", 5)
    listener = socket.create_server((demo.HOST, 0))
    address = listener.getsockname()

    def visit() -> None:
        damaged = socket.create_connection(address)
        damaged.sendall(b"GET / HTTP/1.1\r\nHost\r\n\r\n")
        assert b"400 Bad Request" in damaged.recv(1000)
        kept = [socket.create_connection(address) for _ in range(5)]
        time.sleep(0.2)
        refused = [socket.create_connection(address) for _ in range(3)]
        for one in refused:
            one.settimeout(5)
            assert one.recv(1) == b""
        for one in [damaged, *kept]:
            one.close()
        time.sleep(0.2)
        with socket.create_connection(address) as another:
            another.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"404 Not Found" in another.recv(1000)

    async def serve() -> None:
        serving = asyncio.create_task(demo.run_until_signal(web.Application(), listener))
        await asyncio.to_thread(visit)
        os.kill(os.getpid(), signal.SIGTERM)
        await serving

    asyncio.run(serve())
    assert not caplog.records


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_this_machine_alone_until_a_signal(micro: Whisper, tmp_path: Path, number: int) -> None:
    micro.save(tmp_path / "model")
    command = [sys.executable, "-m", "kikitori", "demo", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0] == f"model: {tmp_path.name}\n"
        address, _, key = lines[1].removeprefix("open http://").strip().partition("/#")
        assert len(key) > 30
        connection = http.client.HTTPConnection(address)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        port = int(address.rpartition(":")[2])
        listening = Path("/proc/net/tcp").read_text() if Path("/proc/net/tcp").exists() else ""
        assert f"0100007F:{port:04X} 00000000:0000 0A" in listening
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert errors.splitlines()[-1] == "ended"
    assert not (tmp_path / "recordings").exists()
