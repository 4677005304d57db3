"""Errors of `hwmodel`.

```
HwModelError
├── SpecError      a network, layer or configuration that contradicts itself
├── BoardError     a board description that is missing, incomplete or impossible
└── BudgetError    a network that does not fit the board
```
"""


class HwModelError(Exception):
    """Base of every error that `hwmodel` raises on purpose."""


class SpecError(HwModelError, ValueError):
    """A network, layer or configuration contradicts itself; the message names layer and field."""


class BoardError(HwModelError, ValueError):
    """A board file is missing, or one of its fields is missing, unknown or out of range."""


class BudgetError(HwModelError):
    """No schedule fits the board; the message names the budget that binds and by how much."""
