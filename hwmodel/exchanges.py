"""Exchanges of options that bring a choice of one option per group within its budgets, or lower the sum of its keys."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.int64]
Floats = NDArray[np.float64]

TINY = 1e-9
"""Slack for rounding, relative to the budgets."""

STARTS = 24
"""Choices from which exchanges of pairs set out."""

PAIR_OPTIONS = 250
"""Options up to which pairs of them are exchanged."""

NOISE = 0.005
"""Noise of the prices of a start, in shares of the gap, by number of the start."""


def repaired(key: Array, share: Floats, group: Array, chosen: Array) -> Array:
    """A choice with as little excess over the budgets as exchanges of single options reach.

    Args:
        key: Shape (options,): what counts against an option beside the budgets.
        share: Shape (options, resources): what an option takes of each budget.
        group: Shape (options,), ascending: the group of each option; every group has one.
        chosen: Shape (groups,): the option of each group to begin with.
    """
    chosen = chosen.copy()
    used = share[chosen].sum(axis=0)
    starts = np.searchsorted(group, np.arange(len(chosen) + 1))
    largest = max(1, int(key.max()))
    change, takes = np.empty_like(share), np.empty(len(share))
    every = np.ones(len(used))

    def exchange(rows: slice, old: Array) -> None:
        """Renews what the exchange of some options for the chosen ones of their groups would change."""
        change[rows] = share[rows] - share[old]
        # What the exchange takes of the budgets counts against it.
        takes[rows] = np.maximum(0.0, change[rows]) @ every
        takes[rows] += np.maximum(0, key[rows] - key[old]) / largest

    exchange(slice(None), chosen[group])
    for _ in range(2 * len(chosen)):
        excess = np.maximum(0.0, used - 1).sum()
        if not (used > 1 + TINY).any():
            break
        fewer = excess - np.maximum(0.0, used - 1 + change) @ every
        pick = int(np.argmax(np.where(fewer > TINY, fewer / (takes + 0.01), -1.0)))
        if fewer[pick] <= TINY:
            break
        used = used + change[pick]
        of = int(group[pick])
        chosen[of] = pick
        exchange(slice(int(starts[of]), int(starts[of + 1])), chosen[of])
    return chosen


def improved(key: Array, use: Array, group: Array, budgets: Array, chosen: Array) -> Array:
    """A choice within the budgets whose keys exchanges of single options no longer lower.

    Args:
        key: Shape (options,).
        use: Shape (options, resources).
        group: Shape (options,): the group of each option.
        budgets: Shape (resources,).
        chosen: Shape (groups,): the option of each group to begin with.
    """
    chosen = chosen.copy()
    spare = budgets - use[chosen].sum(axis=0)
    while True:
        gain = key[chosen][group] - key
        better = np.flatnonzero(gain > 0)
        more = use[better] - use[chosen][group[better]]
        better, more = better[allowed := (more <= spare).all(axis=1)], more[allowed]
        if not len(better):
            return chosen
        best = int(np.argmax(gain[better]))
        spare = spare - more[best]
        chosen[group[better[best]]] = better[best]


def paired(share: Floats, group: Array, extra: Floats, gap: float) -> Array | None:
    """A choice within the budgets that exchanges of two options at once reach from one of several starts.

    Each start takes the cheapest options at the prices with some noise, more of it from start to start.

    Args:
        share: Shape (options, resources): what an option takes of each budget.
        group: Shape (options,), ascending: the group of each option; every group has one.
        extra: Shape (options,): how much dearer an option is than the cheapest of its group, at prices of sum 1.
        gap: How much dearer a choice within the budgets may be at most than the cheapest one.

    Returns:
        Shape (groups,), or None if none was found, which proves nothing.
    """
    first = np.searchsorted(group, np.arange(int(group[-1]) + 2))
    # Groups of one option have nothing to exchange.
    free = np.flatnonzero(np.diff(first)[group] > 1)
    if len(free) > PAIR_OPTIONS:
        return None
    of, some = group[free], share[free]
    same = of[:, None] == of
    total, part = np.empty(same.shape), np.empty(same.shape)
    columns = np.flatnonzero(share.any(axis=0)).tolist()
    noise = np.random.default_rng(0).gumbel(size=(STARTS, len(group)))
    for start in range(STARTS):
        priced = extra - NOISE * gap * start * noise[start]
        least = np.minimum.reduceat(priced, first[:-1])
        is_least = np.flatnonzero(priced <= least[group])
        chosen = is_least[np.searchsorted(group[is_least], np.arange(len(least)))]
        for _ in range(len(least)):
            over = share[chosen].sum(axis=0) - 1
            if over.max() <= TINY:
                return chosen
            if not len(free):
                break
            change = some - share[chosen[of]]
            total[:] = 0.0
            for column in columns:
                np.add.outer(change[:, column], change[:, column] + over[column], out=part)
                np.maximum(part, 0.0, out=part)
                np.add(total, part, out=total)
            total[same] = np.inf
            one, other = divmod(int(total.argmin()), len(free))
            if total[one, other] >= np.maximum(0.0, over).sum() - TINY:
                break
            chosen[of[one]], chosen[of[other]] = free[one], free[other]
    return None
