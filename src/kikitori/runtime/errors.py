"""Errors that a user can fix, checks of numeric arguments that raise them, and secrets, which no text may hold.

Each error names the thing, its value and the remedy, and is shown without a traceback.
"""

import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from numbers import Integral, Real
from typing import Any

# How errors of torch, cuBLAS and cuDNN say that the memory of a device, or of the CPU, is full. Only torch's own
# allocator raises an OutOfMemoryError; the last one is cuDNN's for its first convolution on a full GPU.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "CUDNN_STATUS_INTERNAL_ERROR")
# Control characters of terminals, and those that reverse the direction of text.
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
# Variables of the environment that hold secrets have a part of this form in their names.
SECRET_NAME = re.compile(
    r"TOKEN|KEY|SECRET|PASS|CREDENTIAL|COOKIE|WEBHOOK|BEARER"
    r"|(?<![A-Z])(O?AUTH|PAT|PWD?|PSWD|CREDS?|DSN|SAS|JWT|OTP|PIN|CONNECTION|SESSION|SIGNATURE|PRIVATE)(?![A-Z])",
    re.IGNORECASE,
)
# Shorter values are switches rather than secrets, and would be found in any text.
SHORTEST_SECRET = 8
# What precedes the host in https://user:password@host, and user:password@host without a scheme.
USER_OF_ADDRESS = re.compile(r"(?<=://)[^\s/?#]{1,500}(?=@)|(?<![\w.%+~-])[\w.%+~-]{1,99}:[^\s/?#@:]{1,300}(?=@\w)")


def secrets() -> dict[str, str]:
    """The secret values of the environment, longest first, each with its variable."""
    found: dict[str, str] = {}
    for name, value in os.environ.items():
        users = USER_OF_ADDRESS.findall(value) if "@" in value else []
        found |= dict.fromkeys([*users, *(user.partition(":")[2] for user in users)], name)
        # A path, as in KEY_FILE or PWD, is not a secret.
        if _names_a_secret(name) and not os.path.exists(value):
            found[value.strip()] = name
    return {v: found[v] for v in sorted(found, key=len, reverse=True) if len(v) >= SHORTEST_SECRET}


@cache
def _names_a_secret(variable: str) -> bool:
    return bool(SECRET_NAME.search(variable))


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


def mask_output() -> None:
    """Masks all that this process logs or prints from now on, tracebacks included."""
    logging.setLogRecordFactory(_MaskedRecord)
    for name in ("stdout", "stderr"):
        if not isinstance(stream := getattr(sys, name), _MaskedStream):
            setattr(sys, name, _MaskedStream(stream))


class _MaskedRecord(logging.LogRecord):
    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        if self.exc_info and self.exc_info[0]:
            self.exc_text = mask("".join(traceback.format_exception(*self.exc_info)).rstrip())

    def getMessage(self) -> str:  # noqa: N802
        return mask(super().getMessage())


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


def printable(text: str) -> str:
    """Returns a text with its control characters escaped; a new line stays."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


class KikitoriError(Exception):
    """Base of the errors below. The command line shows their class and message, without a traceback."""

    def __init__(self, *arguments: Any) -> None:
        # torch makes an error of a loader worker again, with the worker's traceback as its message.
        if arguments and isinstance(arguments[0], str) and arguments[0].startswith("Caught "):
            arguments = (arguments[0].rpartition(f"{type(self).__name__}: ")[2].rstrip(), *arguments[1:])
        super().__init__(*arguments)

    def __str__(self) -> str:
        # A file name that is not valid UTF-8 must not break printing or storing the message, and one with control
        # characters must not reach a terminal.
        return printable(mask(super().__str__()).encode("utf-8", "backslashreplace").decode())


class ConfigError(KikitoriError):
    """The configuration is invalid."""


class DataError(KikitoriError):
    """The corpus cannot be used in its present state."""


class ModelError(KikitoriError):
    """The model cannot be loaded, or does not match the configuration."""


class TrainingError(KikitoriError):
    """Training cannot continue."""


class Diverged(TrainingError):  # noqa: N818
    """The loss or the weights are not finite any more."""


class OutOfMemory(TrainingError):  # noqa: N818
    """The smallest part of a step does not fit into the device's memory."""


class SweepError(KikitoriError):
    """Trials of a sweep failed, or the sweep cannot continue."""


class Pruned(KikitoriError):  # noqa: N818
    """A search ended this trial early. That is not a failure, but the trial has no final result."""


class Stopped(BaseException):
    """A signal stopped the run or sweep. code: the exit code of the process, 128 plus the signal's number.

    A BaseException like KeyboardInterrupt, because it can be raised anywhere and must pass `except Exception`.
    """

    def __init__(self, number: int, more: str = "") -> None:
        super().__init__(number, more)
        self.number = number
        self.code = 128 + number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}{self.args[1]}"


class Failed(BaseException):
    """Carries the error of a command past Hydra, which would print a preamble above its message."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def describe_error(error: BaseException) -> str:
    """Returns an error's class and message, as Python prints them below a traceback."""
    return f"{type(error).__name__}: {mask(str(error)) or 'stopped'}"


def one_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or the name of its class if the message is empty."""
    return (mask(str(error)).strip() or type(error).__name__).splitlines()[0]


def shortened(names: Sequence[str], shown: int = 3) -> str:
    """Returns the first names of a list, and how many others there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether a computation failed for lack of memory, in torch or in a library that allocates by itself."""
    text = f"{type(error).__name__}: {error}"
    return isinstance(error, RuntimeError) and ("OutOfMemoryError" in text or any(s in text for s in OUT_OF_MEMORY))


def check_above_zero(prefix: str, values: Mapping[str, Any], whole: bool = False) -> None:
    """Raises ConfigError for the first value that is not a number above 0, or with `whole` no whole number.

    prefix: of the names in the configuration, such as `optim`.
    """
    for name, value in values.items():
        if not _is_number(value, whole) or not value > 0:
            raise ConfigError(f"{prefix}.{name}={value}: must be a{' whole' * whole} number above 0")


def check_not_negative(prefix: str, values: Mapping[str, Any], whole: bool = False) -> None:
    """Raises ConfigError for the first value that is not a number of at least 0, or with `whole` no whole number."""
    for name, value in values.items():
        if not _is_number(value, whole) or not value >= 0:
            raise ConfigError(f"{prefix}.{name}={value}: must be a{' whole' * whole} number, not below 0")


def check_fraction(prefix: str, values: Mapping[str, Any]) -> None:
    """Raises ConfigError for the first value that is not a number from 0 to 1."""
    for name, value in values.items():
        if not _is_number(value, False) or not 0 <= value <= 1:
            raise ConfigError(f"{prefix}.{name}={value}: must be a number between 0 and 1")


def _is_number(value: Any, whole: bool) -> bool:
    return isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
