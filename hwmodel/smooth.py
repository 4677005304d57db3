"""Functions of a density that are costly but smooth, for many densities at once.

Expected bits and loads are sums of hundreds of terms, but smooth in the density, and what counts is their ceiling.  So
they are interpolated by Chebyshev polynomials on pieces of the logit of the density, every piece is compared with the
function between its nodes, and wherever the ceiling is not certain the function itself decides.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import exp

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.int64]
Floats = NDArray[np.float64]

DEGREE = 15
"""Degree of the polynomial of a piece."""

FEW = 24
"""Densities up to which a piece that is not known is not worth its nodes."""

CERTAIN = 20
"""A piece may be wrong by this part of the margin within which the function itself decides."""

HALVINGS = 4
"""How often a piece is halved that one polynomial does not serve."""


class Smooth:
    """A smooth function of a density in (0, 1), interpolated piece by piece.

    Args:
        function: The function.
        margin: What the values may be wrong by at most, as compared between the nodes.
    """

    def __init__(self, function: Callable[[float], float], margin: float) -> None:
        self._function = function
        self._margin = margin
        self._pieces: dict[tuple[int, int], Floats | None] = {}

    def values(self, densities: Floats) -> Floats:
        """Values at ascending densities in (0, 1), shape (n,); NaN where no piece serves."""
        found = np.full(len(densities), np.nan)
        self._fill(np.log(densities / (1 - densities)), found, 0)
        return found

    def _fill(self, logits: Floats, found: Floats, halvings: int) -> None:
        """Fills `found`, shape (n,), from pieces that are 2**-halvings wide, and from narrower ones."""
        numbers = np.floor(logits * (1 << halvings))
        bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
        for start, stop in pairwise(bounds):
            if start == stop:
                continue
            key = (halvings, int(numbers[start]))
            if key not in self._pieces:
                if stop - start <= FEW:
                    continue
                self._pieces[key] = self._piece(*key)
            polynomial = self._pieces[key]
            if polynomial is not None:
                at = 2 * (logits[start:stop] * (1 << halvings) - key[1]) - 1
                found[start:stop] = _evaluate(polynomial, at)
            elif halvings < HALVINGS:
                self._fill(logits[start:stop], found[start:stop], halvings + 1)

    def _piece(self, halvings: int, number: int) -> Floats | None:
        """Polynomial of the piece that starts at logit number / 2**halvings; None if it is not exact."""
        nodes = np.polynomial.chebyshev.chebpts1(DEGREE + 1)
        between = np.array([-0.999, *((nodes[:-1] + nodes[1:]) / 2)[:: DEGREE // 4], 0.999])
        fitted = np.polynomial.chebyshev.chebfit(nodes, self._at(halvings, number, nodes), DEGREE)
        polynomial = np.asarray(np.polynomial.chebyshev.cheb2poly(fitted), dtype=np.float64)
        errors = _evaluate(polynomial, between) - self._at(halvings, number, between)
        return polynomial if np.abs(errors).max() * CERTAIN < self._margin else None

    def _at(self, halvings: int, number: int, places: Floats) -> Floats:
        logits = (number + (places + 1) / 2) / (1 << halvings)
        return np.array([self._function(1 / (1 + exp(-logit))) for logit in logits.tolist()])


def _evaluate(polynomial: Floats, at: Floats) -> Floats:
    """Values of a polynomial, its constant first, by Horner's rule in place."""
    values = np.full(len(at), polynomial[-1])
    for coefficient in polynomial[-2::-1].tolist():
        values *= at
        values += coefficient
    return values


def ceilings(values: Floats, margin: float, exact: Callable[[int], int]) -> Array:
    """Values rounded up.

    Args:
        values: Shape (n,), each wrong by less than `margin`; NaN if not known.
        margin: See `values`.
        exact: The integer of an index into `values`, for those that the margin leaves in doubt.
    """
    rounded = np.ceil(values)
    with np.errstate(invalid="ignore"):
        doubtful = np.flatnonzero(~((rounded - values > margin) & (values - rounded + 1 > margin)))
    rounded[doubtful] = 0
    found: Array = rounded.astype(np.int64)
    for index in doubtful.tolist():
        found[index] = exact(index)
    return found
