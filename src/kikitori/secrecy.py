"""Which values of the environment are secrets: they must reach no file and no server."""

import os

SECRET_NAMES = ("TOKEN", "KEY", "SECRET", "PASSWORD")
# Shorter values are no secrets but switches, and would be found in anything.
SHORTEST = 8


def secret_in(text: str) -> str | None:
    """The environment variable whose secret value a text holds."""
    secrets = {k: v for k, v in os.environ.items() if len(v) >= SHORTEST and any(n in k.upper() for n in SECRET_NAMES)}
    return next((name for name, value in secrets.items() if value in text), None)
