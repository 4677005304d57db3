"""Moved: import from `qat.integer` (this alias goes away)."""

from qat.integer import BINARY_SHIFT, IntegerLayer, IntegerNetwork, Rescale

__all__ = ["BINARY_SHIFT", "IntegerLayer", "IntegerNetwork", "Rescale"]
