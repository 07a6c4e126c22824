"""Secrets in the environment, which must not be written to files or sent to servers."""

import os

SECRET_NAMES = ("TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL")
# Shorter values are switches rather than secrets, and would be found in any text.
SHORTEST = 8


def secret_in(text: str) -> str | None:
    """The environment variable whose secret value a text contains; None if there is none."""
    return next((name for name, value in os.environ.items() if value in text and _is_secret(name, value)), None)


def secret_fault(text: str) -> str | None:
    """An error message if a text contains a secret value, None otherwise."""
    variable = secret_in(text)
    return f"holds the value of {variable}, and a configuration is written to files; leave it out" if variable else None


def _is_secret(name: str, value: str) -> bool:
    # A path, as in KEY_FILE, is not a secret.
    named = any(part in name.upper() for part in SECRET_NAMES)
    return named and len(value) >= SHORTEST and not os.path.exists(value)
