"""Which values of the environment are secrets: they must reach no file and no server."""

import os

SECRET_NAMES = ("TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL")
# Shorter values are no secrets but switches, and would be found in anything.
SHORTEST = 8


def secret_in(text: str) -> str | None:
    """The environment variable whose secret value a text holds."""
    return next((name for name, value in os.environ.items() if value in text and _is_secret(name, value)), None)


def _is_secret(name: str, value: str) -> bool:
    # KEY_FILE names a secret's place, which a configuration may say.
    named = any(part in name.upper() for part in SECRET_NAMES)
    return named and len(value) >= SHORTEST and not os.path.exists(value)
