"""Patterns of layer names, as settings have them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from qat.errors import ConfigError


def matching(pattern: str, names: Sequence[str], setting: str) -> list[str]:
    """The names that a pattern (`layer3.*`) matches, in their order.

    Args:
        pattern: A name, or one with `*`, `?` or `[...]` in it.
        names: Of the layers with weights.
        setting: Where the pattern stands, for the error.

    Raises:
        ConfigError: It matches none.
    """
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise ConfigError(f"{setting}: pattern {pattern!r} matches no layer; layers with weights are {list(names)}")
    return found
