"""Enumerations whose members are names."""

from __future__ import annotations

from enum import StrEnum


class Names(StrEnum):
    """Members are strings, and hashed as such: they are in the keys of much that is looked up."""

    __hash__ = str.__hash__  # that of `Enum` hashes the member's name, in Python
