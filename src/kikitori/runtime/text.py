"""Texts that leave the process: control characters are escaped, and secrets are masked.

Every message, log record and traceback passes `safe`, so what a file or a run of someone else holds cannot act on the
terminal, and no password reaches a file.
"""

import io
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterable
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus, unquote

# What controls a terminal, reverses the direction of text, or is half a character; a line break is neither.
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Variables of the environment that hold secrets have a part of this form in their names.
SECRET_NAME = re.compile(
    r"TOKEN|KEYS?(?![A-Z])|SECRET|PASS|CREDENTIAL|COOKIE|WEBHOOK|BEARER|PIN$"
    r"|(?<![A-Z])(O?AUTH|PAT|PWD?|PSWD|CREDS?|DSN|SAS|JWT|OTP|CONNECTION|SESSION_?ID|SIGNATURE|PRIVATE)(?![A-Z])",
    re.IGNORECASE,
)
# Shorter values are switches rather than secrets, and would be found in any text.
SHORTEST_SECRET = 8
# What precedes the host in https://user:password@host, and user:password@host without a scheme. A password may hold a
# slash, but a port does not begin one.
USER_OF_ADDRESS = re.compile(
    r"(?<=://)(?:[^\s/?#]{1,500}|[^\s/?#:@]{0,99}:(?!\d*[/?#])[^\s@]{1,300})(?=@)"
    r"|(?<![\w.%+~-])[\w.%+~-]{1,99}:[^\s/?#@:]{1,300}(?=@\w)"
)


def secrets() -> dict[str, str]:
    """The secret values of the environment in all their forms, longest first, each with its variable."""
    # What os.environ decodes, at each look, takes ten times as long.
    return _secrets(tuple(getattr(os.environ, "_data", os.environ).items()))


@lru_cache(maxsize=1)
def _secrets(environment: tuple[tuple[bytes | str, bytes | str], ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in ((os.fsdecode(name), os.fsdecode(value).strip()) for name, value in environment):
        users = USER_OF_ADDRESS.findall(value) if "@" in value else []
        parts = [*users, *(user.partition(":")[2] for user in users)]
        # A path, as in KEY_FILE or PWD, is not a secret.
        if SECRET_NAME.search(name) and not os.path.exists(value):
            parts += [value, *value.splitlines()]
        forms = {form for part in parts if len(part) >= SHORTEST_SECRET for form in _forms(part)}
        found |= {form: name for form in forms if len(form) >= SHORTEST_SECRET}
    return {form: found[form] for form in sorted(found, key=len, reverse=True)}


def _forms(secret: str) -> set[str]:
    """A secret as it is, and as errors, JSON and addresses write it."""
    written = os.fsencode(secret)  # a secret need not be UTF-8
    quoted = {quote(written), quote(written, safe=""), quote_plus(written), unquote(secret)}
    return {secret, repr(secret)[1:-1], repr(written)[2:-1], json.dumps(secret)[1:-1], *quoted}


def secret_fault(text: str) -> str | None:
    """An error message if a text that is written to files contains a secret, None otherwise."""
    for secret, name in secrets().items():
        if secret in text:
            return f"holds the value of {name}, and a configuration is written to files; leave it out"
    if "@" in text and "://" in text and USER_OF_ADDRESS.search(text):
        return "holds an address with a user or password, and a configuration is written to files; leave these out"
    return None


def mask(text: str) -> str:
    """A text without the secrets of the environment and without users and passwords of addresses."""
    for secret in secrets():
        text = text.replace(secret, "***")
    return USER_OF_ADDRESS.sub("***", text) if "@" in text else text


def printable(text: str) -> str:
    """Returns a text of any origin as a terminal may show it: characters that control it are written as `\\x1b`."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def printable_line(text: str) -> str:
    """Returns `printable` text in which line breaks are written as \\n."""
    return printable(text).replace("\n", "\\n")


def safe(text: str) -> str:
    """Returns a text that is printable and holds no secret."""
    return printable(mask(text))


def make_output_safe() -> None:
    """Makes `safe` what this process logs, and tracebacks of errors that end it; masks all else that it prints."""
    logging.setLogRecordFactory(SafeRecord)
    sys.excepthook = print_traceback
    for name in ("stdout", "stderr"):
        if not isinstance(stream := getattr(sys, name), _MaskedStream):
            # A terminal of another encoding shows what it has no character for as an escape.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, _MaskedStream(stream))


def print_traceback(*error: Any) -> None:
    """Prints the traceback of an error, given as `sys.excepthook` is."""
    print(safe("".join(traceback.format_exception(*error))), end="", file=sys.stderr)


class SafeRecord(logging.LogRecord):
    """A record of the log whose message and traceback are `safe`."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        if self.exc_info and self.exc_info[0]:
            self.exc_text = safe("".join(traceback.format_exception(*self.exc_info)).rstrip())

    def getMessage(self) -> str:  # noqa: N802
        return safe(super().getMessage())


class _MaskedStream:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return int(self._stream.write(mask(text)) or 0)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_stream"], name)
