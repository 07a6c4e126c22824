"""What the Hugging Face Hub refuses, in one sentence with the remedy, and how long is waited for it."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import parse_ratelimit_headers, set_client_factory
from huggingface_hub.utils._http import default_client_factory

from kikitori.runtime.errors import ConfigError, one_line

# Seconds for one answer, and at most until the Hub may be asked again; how often it is.
ANSWER_S, MAX_WAIT_S, TRIES = 60.0, 120, 4
T = TypeVar("T")


class TooLong(Exception):  # noqa: N818
    """The Hub asks to wait for longer than a person would."""

    def __init__(self, seconds: int, status: int) -> None:
        super().__init__(seconds, status)
        self.seconds, self.status = seconds, status


def _wait_of(response: Any) -> int | None:
    """The seconds that an answer asks to wait, in either of the headers that the client obeys."""
    limit = parse_ratelimit_headers(response.headers) if response.status_code == 429 else None
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    value = str(response.headers.get("Retry-After") or "").strip()
    return int(value) if re.fullmatch(r"[0-9]{1,18}", value) else None


def _refuse_long_waits(response: Any) -> None:
    wait = _wait_of(response)
    if response.is_error and wait is not None and wait > MAX_WAIT_S:
        raise TooLong(wait, response.status_code)


def _limit_wait(request: Any) -> None:
    """Limits the wait for an answer of any request: some of the client's say themselves that it has no limit."""
    request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), ANSWER_S)


@contextmanager
def polite_client() -> Iterator[None]:
    """Gives the client of the Hub, which would wait for ever, limits on an answer and on what it is asked to wait."""

    def factory() -> Any:
        client = default_client_factory()
        own = client.event_hooks["request"]
        client.event_hooks = {"request": [*own, _limit_wait], "response": [_refuse_long_waits]}
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
    except Exception as error:  # the HTTP library raises errors of many classes
        raise ConfigError(_reason(error, name)) from None


def _reason(error: BaseException, name: str) -> str:
    """What an error of the client means; the client hides some behind others."""
    if isinstance(error, TooLong):
        return f"the Hub is busy and asks to wait {error.seconds} s ({error.status}); run this again then"
    if isinstance(error, HfHubHTTPError):
        return _refusal(error, name)
    if error.__cause__ is not None:
        return _reason(error.__cause__, name)
    if isinstance(error, LookupError | TypeError | AttributeError | ValueError | RecursionError):
        address = huggingface_hub.constants.ENDPOINT
        return (
            f"{address} does not answer as the Hub does ({type(error).__name__}: {_line(error)}); check HF_ENDPOINT, "
            "and whether the network asks for a login"
        )
    return f"{name} was not pushed: {_line(error)}; run this again"


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
