"""Errors of `hwmodel`.

```
HwModelError
├── SpecError      a network, layer or configuration that contradicts itself
├── BoardError     a board description that is missing, incomplete or impossible
└── BudgetError    a network that does not fit the board
```
"""

from __future__ import annotations


class HwModelError(Exception):
    """Base of every error that `hwmodel` raises on purpose."""


class SpecError(HwModelError, ValueError):
    """A network, layer or configuration contradicts itself; the message names layer and field."""


class BoardError(HwModelError, ValueError):
    """A board file is missing, or one of its fields is missing, unknown or out of range."""


class BudgetError(HwModelError):
    """No schedule fits the board; the message names the budget that binds and by how much."""


def require_type(name: str, value: object, kind: type, remedy: str) -> None:
    """Raises `SpecError` unless a value is of a kind; the message says where such ones come from."""
    if not isinstance(value, kind):
        shown = repr(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise SpecError(f"{name} is {shown}, expected {article} {kind.__name__}: {remedy}")
