"""Errors that a user can cause: each names the thing, its value and the remedy, and is shown without a traceback."""

import signal


class KikitoriError(Exception):
    """Base of the errors below, which the command line shows as their message alone."""

    def __str__(self) -> str:
        # A name that is no UTF-8 must not stop whoever prints or stores the message.
        message = super().__str__().encode("utf-8", "backslashreplace").decode()
        return f"{type(self).__name__}: {message}"


class ConfigError(KikitoriError):
    """The configuration cannot be run as it is."""


class DataError(KikitoriError):
    """The corpus cannot be used as it is."""


class ModelError(KikitoriError):
    """The model cannot be loaded, or does not fit the configuration."""


class TrainingError(KikitoriError):
    """Training cannot go on."""


class Pruned(KikitoriError):  # noqa: N818
    """A search gave this trial up: not a failure, but no result either."""


class Stopped(BaseException):
    """A run or sweep was told to stop by a signal. code: what the process ends with, 128 and the signal's number.

    It may be raised anywhere, so that it must pass by those who handle any exception, as KeyboardInterrupt does.
    """

    def __init__(self, number: int, more: str = "") -> None:
        super().__init__(number, more)
        self.number = number
        self.code = 128 + number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}{self.args[1]}"


class SweepError(KikitoriError):
    """Trials of a sweep failed, or it cannot go on."""


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
