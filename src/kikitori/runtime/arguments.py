"""Checks of numeric arguments, for code that no configuration was checked for."""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from kikitori.runtime.errors import ConfigError


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
