"""What the Hugging Face Hub refuses, in one sentence with the remedy, and how long is waited for it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import set_client_factory
from huggingface_hub.utils._http import default_client_factory

from kikitori.runtime.errors import ConfigError, one_line

# Seconds for one answer, and at most until the Hub may be asked again; how often it is.
ANSWER_S, MAX_WAIT_S, TRIES = 60.0, 120, 4
T = TypeVar("T")


class TooLong(Exception):  # noqa: N818
    """The Hub asks to wait for longer than a person would."""

    def __init__(self, seconds: int) -> None:
        super().__init__(seconds)
        self.seconds = seconds


def _wait_of(response: Any) -> int | None:
    """The seconds that an answer asks to wait."""
    value = str(response.headers.get("Retry-After") or "").strip()
    return int(value) if value.isdigit() else None


def _refuse_long_waits(response: Any) -> None:
    wait = _wait_of(response)
    if response.status_code in (429, 503) and wait is not None and wait > MAX_WAIT_S:
        raise TooLong(wait)


@contextmanager
def polite_client() -> Iterator[None]:
    """Gives the client of the Hub, which would wait for ever, limits on an answer and on what it is asked to wait."""

    def factory() -> Any:
        client = default_client_factory()
        client.timeout = ANSWER_S
        client.event_hooks = {**client.event_hooks, "response": [_refuse_long_waits]}
        return client

    set_client_factory(factory)
    try:
        yield
    finally:
        set_client_factory(default_client_factory)


def patient(ask: Callable[[], T]) -> T:
    """Asks again where the Hub is busy: the client itself does so only for some requests."""
    for attempt in range(1, TRIES + 1):
        try:
            return ask()
        except HfHubHTTPError as error:
            if attempt == TRIES or error.response.status_code not in (429, 500, 502, 503, 504):
                raise
            wait = _wait_of(error.response)
            time.sleep(2**attempt if wait is None else wait)
    raise AssertionError


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Raises what the Hub refuses, and what the network does, as ConfigError. name: on the Hub."""
    try:
        yield
    except ConfigError:
        raise
    except TooLong as error:
        raise ConfigError(f"the Hub is busy and asks to wait {error.seconds} s (429); run this again then") from None
    except HfHubHTTPError as error:
        raise ConfigError(_refusal(error, name)) from None
    except Exception as error:  # the HTTP library raises errors of many classes
        cause = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else None
        reason = _refusal(cause, name) if cause else f"{name} was not pushed: {_line(error)}; run this again"
        raise ConfigError(reason) from None


def _refusal(error: HfHubHTTPError, name: str) -> str:
    """What a status means, with the remedy."""
    status, owner = error.response.status_code, name.partition("/")[0]
    if status == 401:
        return "the Hub does not accept the token (401); log in again with hf auth login, or set HF_TOKEN to another"
    if status == 403:
        return (
            f"the token may not write to {name} (403); use one with the permission to write, and a name that begins "
            f"with you or an organisation of yours, not {owner}"
        )
    if status == 404:
        return (
            f"the Hub has no {name}, or no owner {owner}, that this token may see (404); check the name and the token"
        )
    if status in (409, 412):
        return f"{name} was changed by somebody else meanwhile ({status}); run this again"
    if status == 429:
        return "the Hub has had too many requests (429); wait some minutes and run this again"
    if status >= 500:
        return f"the Hub has a fault of its own ({status}); run this again later, see https://status.huggingface.co"
    return f"the Hub refuses to take {name} ({status}): {_line(error)}"


def _line(error: BaseException) -> str:
    """The message of an error in one line, without the token, which may come from a file."""
    line = " ".join(str(error).split())[:300] or one_line(error)
    token = huggingface_hub.get_token()
    return line.replace(token, "***") if token else line
