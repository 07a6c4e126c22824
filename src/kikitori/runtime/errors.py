"""Errors that a user can fix. Each names the thing, its value and the remedy, and is shown without a traceback."""

import signal


class KikitoriError(Exception):
    """Base of the errors below. The command line shows their message alone."""

    def __str__(self) -> str:
        # A file name that is not valid UTF-8 must not break printing or storing the message.
        message = super().__str__().encode("utf-8", "backslashreplace").decode()
        return f"{type(self).__name__}: {message}"


class ConfigError(KikitoriError):
    """The configuration is invalid."""


class DataError(KikitoriError):
    """The corpus cannot be used in its present state."""


class ModelError(KikitoriError):
    """The model cannot be loaded, or does not match the configuration."""


class TrainingError(KikitoriError):
    """Training cannot continue."""


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


def one_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or the name of its class if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
