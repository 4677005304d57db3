"""Integers -> packed files -> integer inference.

`load_packed` and what it needs is numpy only; names that need torch are imported when they are asked for (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qat.export.lowering import export
    from qat.export.packed import PackedModel, load_packed, save_packed

_HOME = {
    "PackedModel": "qat.export.packed",
    "load_packed": "qat.export.packed",
    "save_packed": "qat.export.packed",
    "export": "qat.export.lowering",
}

__all__ = ["PackedModel", "export", "load_packed", "save_packed"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
