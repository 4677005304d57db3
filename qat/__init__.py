"""Quantization-aware training with hardware in the loop.

The face of the package: `trace`, `prepare`, `deploy`, and `qat.export` with `export` and `load_packed`.  They are
imported when they are asked for (PEP 562), so that `import qat` needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qat import export
    from qat.convert import prepare
    from qat.deployment import deploy
    from qat.graph import trace

_HOME = {"deploy": "qat.deployment", "prepare": "qat.convert", "trace": "qat.graph"}

__all__ = ["deploy", "export", "prepare", "trace"]


def __getattr__(name: str) -> Any:
    if name == "export":
        return import_module("qat.export")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
