"""Checks of settings: what is out of range is refused with the setting's name and what was expected."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence

from hwmodel.table import COLUMNS
from qat.errors import ConfigError


def require(ok: bool, name: str, value: object, expected: str) -> None:
    """Raises `ConfigError` with the setting's name and value, and what was expected, unless `ok`."""
    if not ok:
        raise ConfigError(f"{name}={value!r}, expected {expected}")


def require_number(name: str, value: float, low: float, high: float = math.inf, *, low_open: bool = False) -> None:
    """Raises `ConfigError` unless `value` is finite and in [low, high], or in (low, high]."""
    above = value > low if low_open else value >= low
    expected = f"a number {'>' if low_open else '>='} {low:g}" + (f" and <= {high:g}" if math.isfinite(high) else "")
    require(math.isfinite(value) and above and value <= high, name, value, expected)


def require_all(name: str, values: Sequence[float], low: float, high: float, *, low_open: bool = False) -> None:
    """Raises `ConfigError` unless every value is in range and comes once."""
    for value in values:
        require_number(name, value, low, high, low_open=low_open)
    require(len(set(values)) == len(values), name, list(values), "each value once")


def require_columns(name: str, columns: Sequence[str]) -> None:
    """Raises `ConfigError` unless every name is a cost column (`hwmodel.table.COLUMNS`)."""
    for column in columns:
        near = difflib.get_close_matches(column, COLUMNS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COLUMNS)}"
        if column not in COLUMNS:
            raise ConfigError(f"{name}: {column!r} is no cost column; {hint}")
