"""Errors that a user can fix, and checks of numeric arguments that raise them.

Each error names the thing, its value and the remedy, and is shown without a traceback.
"""

import errno
import signal
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from kikitori.runtime.text import safe

# How errors of torch, cuBLAS and cuDNN say that the memory of a device, or of the CPU, is full. Only torch's own
# allocator raises an OutOfMemoryError; the last one is cuDNN's for its first convolution on a full GPU.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "CUDNN_STATUS_INTERNAL_ERROR")

# Errors of the disk, with the remedy.
DISK_ERRORS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free space"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "fix its permissions"),
    errno.EROFS: "mount it writable",
    errno.EIO: "check the disk",
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR, errno.EEXIST), "move what has this name"),
}


class KikitoriError(Exception):
    """Base of the errors below. The command line shows their class and message, without a traceback."""

    def __init__(self, *arguments: Any) -> None:
        # torch makes an error of a loader worker again, with the worker's traceback as its message.
        if arguments and isinstance(arguments[0], str) and arguments[0].startswith("Caught "):
            arguments = (arguments[0].rpartition(f"{type(self).__name__}: ")[2].rstrip(), *arguments[1:])
        super().__init__(*arguments)

    def __str__(self) -> str:
        return safe(super().__str__())


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


class GuardFailed(KikitoriError):  # noqa: N818
    """Figures of the guard are worse than the base's, and `guard.fail_if_worse` is set."""


class ExportFailed(KikitoriError):  # noqa: N818
    """An export cannot be written or read back, or its engine reads other texts than the model."""


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
    return f"{type(error).__name__}: {safe(str(error)) or 'stopped'}"


def one_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or the name of its class if the message is empty."""
    return (safe(str(error)).strip() or type(error).__name__).splitlines()[0]


def raise_problems(found: Sequence[str]) -> None:
    """Raises ConfigError with all problems of a configuration, if there are any."""
    if found:
        count = f"{len(found)} problem{'s' * (len(found) > 1)}"
        raise ConfigError(f"{count} in the configuration\n" + "\n".join(f"  {line}" for line in found))


def shortened(names: Sequence[str], shown: int = 3) -> str:
    """Returns the first names of a list, and how many others there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether a computation failed for lack of memory, in torch or in a library that allocates by itself."""
    text = f"{type(error).__name__}: {error}"
    return isinstance(error, RuntimeError) and ("OutOfMemoryError" in text or any(s in text for s in OUT_OF_MEMORY))


def remedy_of(error: BaseException) -> str | None:
    """Returns what happened and what to do, if the machine is the cause; None otherwise."""
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return f"{error.filename or 'the disk'}: {error.strerror}; {DISK_ERRORS[error.errno]}"
    if is_out_of_memory(error):
        return f"{one_line(error)}; use a smaller model, or free the memory that other processes use"
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        cause = one_line(error)
        return f"{cause}; if it ran out of memory, lower data.num_workers (0 uses no worker processes)"
    return None


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


def check_below_one(prefix: str, values: Mapping[str, Any]) -> None:
    """Raises ConfigError for the first value that is not a number from 0 to below 1."""
    for name, value in values.items():
        if not _is_number(value, False) or not 0 <= value < 1:
            raise ConfigError(f"{prefix}.{name}={value}: must be a number from 0 to below 1")


def _is_number(value: Any, whole: bool) -> bool:
    return isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
