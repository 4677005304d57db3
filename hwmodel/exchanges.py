"""Exchanges of options that bring a choice of one option per group within its budgets, or lower the sum of its keys."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.int64]
Floats = NDArray[np.float64]

TINY = 1e-9
"""Slack for rounding, relative to the budgets."""


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


def descended(key: Floats, share: Floats, group: Array, starts: Array, penalty: float) -> Array:
    """Choices whose sum of keys and penalties exchanges of single options no longer lower.

    Args:
        key: Shape (options,).
        share: Shape (options, resources): what an option takes of each budget.
        group: Shape (options,): the group of each option.
        starts: Shape (starts, groups): the options of each group to begin with.
        penalty: What exceeding a budget by all of it costs.

    Returns:
        Shape (starts, groups).
    """
    chosen = starts.copy()
    columns = np.flatnonzero(share.any(axis=0)).tolist()
    left, over = np.arange(len(chosen)), share[chosen].sum(axis=1) - 1
    for _ in range(2 * chosen.shape[1]):
        old = chosen[left][:, group]
        change = key - key[old]
        for column in columns:
            part = share[:, column]
            change += penalty * np.maximum(0.0, part - part[old] + over[left, column, None])
        pick = change.argmin(axis=1)
        least = change[np.arange(len(left)), pick]
        lower = least < penalty * np.maximum(0.0, over[left]).sum(axis=1) - TINY * penalty
        left, pick = left[lower], pick[lower]
        if not len(left):
            break
        over[left] += share[pick] - share[chosen[left, group[pick]]]
        chosen[left, group[pick]] = pick
    return chosen


def descended_by_pairs(key: Floats, share: Floats, group: Array, free: Array, start: Array, penalty: float) -> Array:
    """A choice whose sum of keys and penalties exchanges of one or two options no longer lower.

    Args:
        key: Shape (options,).
        share: Shape (options, resources): what an option takes of each budget.
        group: Shape (options,): the group of each option.
        free: The options that may be taken.
        start: Shape (groups,): the option of each group to begin with.
        penalty: What exceeding a budget by all of it costs.
    """
    chosen, of = start.copy(), group[free]
    none = len(free)  # the last one stands for no exchange
    same = np.zeros((none + 1, none + 1), dtype=bool)
    same[:none, :none] = of[:, None] == of
    total, part = np.empty(same.shape), np.empty(same.shape)
    columns = np.flatnonzero(share.any(axis=0)).tolist()
    change, cost = np.zeros((none + 1, share.shape[1])), np.zeros(none + 1)
    for _ in range(2 * len(chosen)):
        cost[:none] = key[free] - key[chosen[of]]
        change[:none] = penalty * (share[free] - share[chosen[of]])
        over = penalty * (share[chosen].sum(axis=0) - 1)
        np.add.outer(cost, cost, out=total)
        for column in columns:
            np.add.outer(change[:, column], change[:, column] + over[column], out=part)
            np.maximum(part, 0.0, out=part)
            np.add(total, part, out=total)
        total[same] = np.inf
        one, other = divmod(int(total.argmin()), none + 1)
        if total[one, other] >= np.maximum(0.0, over).sum() - TINY * penalty:
            break
        for pick in (one, other):
            if pick < none:
                chosen[of[pick]] = free[pick]
    return chosen
