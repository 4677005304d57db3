"""What each choice of a dimension costs by itself: what Lagrange paths trade against loss."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from hwmodel.table import HIGHER_IS_BETTER
from qat.search.space import SearchSpace
from qat.search.trial import CostFunction, FloatArray

SIZES = frozenset({"stored_bits", "bits_per_weight", "compression", "entropy_bound_bits"})
"""Cost columns that say no more than stored bits, whatever the activations."""

Prices = Sequence[FloatArray]
"""Per dimension what each choice costs; shape (choices,) each."""


def prices_of(space: SearchSpace, cost: CostFunction, columns: Iterable[str]) -> list[Prices]:
    """Stored bits, and where activation bits are searched, which stored bits do not see, other costs too.

    Of each other column two: alone, and beside stored bits, each as a share of its span over the space.  A price is
    what one dimension alone changes in the exact cost, half from the cheapest and half from the most precise point.

    Args:
        space: The choices.
        cost: Exact costs from layer indices.
        columns: Cost columns that matter.
    """
    stored: Prices = space.dimension_bits
    if not space.searches_activations:
        return [stored]
    sizes = space.sizes
    owners, choices = np.repeat(np.arange(len(sizes)), sizes), np.concatenate([np.arange(size) for size in sizes])
    points = np.stack([np.zeros_like(sizes), sizes - 1])[:, None, :].repeat(len(choices), axis=1)
    points[:, np.arange(len(choices)), owners] = choices
    found = cost(space.layer_indices(points.reshape(-1, len(sizes))))
    prices = [stored]
    for name in dict.fromkeys(columns):
        if name in SIZES or name == "fits":  # yes or no is no price
            continue
        values = np.asarray(found[name], np.float64).reshape(2, -1).mean(axis=0)
        alone: Prices = np.split(-values if name in HIGHER_IS_BETTER else values, np.cumsum(sizes)[:-1])
        spans = [sum(float(np.ptp(row)) for row in price) or 1.0 for price in (stored, alone)]
        both = [bits / spans[0] + row / spans[1] for bits, row in zip(stored, alone, strict=True)]
        prices += [alone, both]
    return prices
