import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from torch._utils import ExceptionWrapper

from kikitori.runtime.errors import ConfigError, DataError, describe_error, one_line, shortened
from kikitori.runtime.text import mask, secret_fault


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("wrong\nat line 2"), "wrong"),
        (ValueError("\n  wrong \n"), "wrong"),
        (ValueError(), "ValueError"),
        (KeyError(" "), "' '"),
        (RuntimeError(" \n"), "RuntimeError"),
        (DataError("a.csv is empty\n  Fill it."), "a.csv is empty"),
    ],
)
def test_an_error_in_one_line_is_the_first_of_its_message_or_its_class(error: Exception, line: str) -> None:
    assert one_line(error) == line


def test_python_prints_the_class_of_an_error_once() -> None:
    error = ConfigError("optim.lr=abc: must be a number")
    assert traceback.format_exception_only(error) == [f"kikitori.runtime.errors.{describe_error(error)}\n"]
    assert describe_error(error) == "ConfigError: optim.lr=abc: must be a number"
    assert describe_error(KeyboardInterrupt()) == "KeyboardInterrupt: stopped"


def test_control_characters_do_not_reach_the_screen() -> None:
    message = str(DataError("a\0b \x1b[2J\x9b \u202e.mp3\r\tend\nnext"))
    assert message == "a\\x00b \\x1b[2J\\x9b \\u202e.mp3\\r\\tend\nnext"


def test_a_file_name_that_is_not_utf_8_can_be_printed() -> None:
    assert str(DataError("caf\udce9.mp3 is missing")) == "caf\\udce9.mp3 is missing"


NAMES = [
    *("AWS_SECRET_ACCESS_KEY", "AZURE_SAS", "AZURE_STORAGE_CONNECTION_STRING", "BEARER", "DB_PASSWORD", "GH_AUTH"),
    *("DOCKER_AUTH_CONFIG", "GITHUB_PAT", "HF_TOKEN", "MYSQL_PWD", "NPM_AUTH", "PASSPHRASE", "SENTRY_DSN", "MY_JWT"),
    *("SESSION_COOKIE", "SLACK_WEBHOOK", "SMB_PASS"),
]
ADDRESSES = ["DATABASE_URL", "HF_ENDPOINT", "HTTPS_PROXY", "REDIS_URL", "WANDB_BASE_URL"]


@pytest.mark.parametrize("name", [*NAMES, *ADDRESSES])
def test_a_secret_is_refused_in_a_configuration_and_masked_elsewhere(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "canary-0123456789"
    text = f"https://user:{secret}@host:80/x" if name in ADDRESSES else secret
    monkeypatch.setenv(name, f"{text}\n")
    assert f"holds the value of {name}" in (secret_fault(f"a {text} b") or "")
    assert secret not in mask(f"a {text} b {secret}")
    assert secret not in str(DataError(f"{text} does not answer"))
    assert secret not in describe_error(OSError(f"{text} does not answer"))


@pytest.mark.parametrize("write", [repr, json.dumps, os.fsencode, str.split])
def test_a_secret_is_masked_as_libraries_write_it(write: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "pa\"ss/w'd\\+é\udcff-canary\nanother-canary%20\n")
    secret = os.environ["MY_TOKEN"].strip()
    quoted = [quote(os.fsencode(secret)), quote_plus(os.fsencode(secret))]
    for text in (f"{write(secret)}", *quoted, f"{KeyError(secret)}", secret.splitlines()[1], "another-canary "):
        assert "canary" in text
        assert "canary" not in mask(text)


def test_a_secret_that_changes_is_masked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for secret in ("canary-0123456789", "0123456789-canary"):
        monkeypatch.setenv("MY_TOKEN", secret)
        assert mask(f"a {secret} b") == "a *** b"
    monkeypatch.delenv("MY_TOKEN")
    assert mask(f"a {secret} b") == f"a {secret} b"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("redis://:password@host", "redis://***@host"),
        ("https://u:p%40ss@h/x?y", "https://***@h/x?y"),
        ("postgres://u:p/w#x?y@db/x", "postgres://***@db/x"),
        ("ftp://user@host", "ftp://***@host"),
        ("u:p4ssw0rd@host", "***@host"),
    ],
)
def test_the_user_of_an_address_is_masked(text: str, masked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # holds the text
    assert mask(f"{text} does not answer") == f"{masked} does not answer"
    assert bool(secret_fault(text)) == ("://" in text)


@pytest.mark.parametrize(
    "name", ["DESKTOP_SESSION", "KEYBOARD_LAYOUT", "PIN_MEMORY", "XDG_SESSION_DESKTOP", "WINDOWPATH"]
)
def test_other_variables_are_no_secrets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "ubuntu-wayland")
    assert secret_fault("ubuntu-wayland") is None


@pytest.mark.parametrize("text", ["https://host:80/a@b", "12:30 a@b.c", "optim.lr=1e-5", "data.release=/a/b@c.tar.gz"])
def test_other_texts_stay(text: str) -> None:
    assert mask(text) == text
    assert secret_fault(text) is None


def test_all_output_is_masked(tmp_path: Path) -> None:
    code = """
import logging, sys, warnings
from kikitori.runtime.text import make_output_safe
make_output_safe()
logging.basicConfig(handlers=[logging.FileHandler("train.log"), logging.StreamHandler(sys.stdout)])
print("printed", "canary-0123456789")
warnings.warn("http://u:canary-9876543210@h")
try:
    raise OSError("http://u:canary-9876543210@h")
except OSError:
    logging.exception("%s", "canary-0123456789")
raise ValueError("canary-0123456789")
"""
    environment = {**os.environ, "MY_TOKEN": "canary-0123456789"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    written = done.stdout + done.stderr + (tmp_path / "train.log").read_text(encoding="utf-8")
    assert written.count("Traceback") == 3
    assert written.count("***") >= 6
    assert "canary" not in written


def test_output_that_cannot_be_encoded_does_not_end_a_command() -> None:
    code = "from kikitori.runtime.text import make_output_safe; make_output_safe(); print('録音')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "\\u9332\\u97f3\n", done.stderr


def test_an_error_of_a_loader_worker_has_its_own_message_only() -> None:
    try:
        raise DataError("a.mp3: no label")
    except DataError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(DataError) as caught:
        wrapped.reraise()
    assert describe_error(caught.value) == "DataError: a.mp3: no label"


def test_of_many_names_a_few_are_given() -> None:
    names = [f"{number}.mp3" for number in range(16)]
    assert shortened(names) == "0.mp3, 1.mp3, 2.mp3 and 13 more"
    assert shortened(names[:3]) == "0.mp3, 1.mp3, 2.mp3"
    assert shortened([]) == ""
