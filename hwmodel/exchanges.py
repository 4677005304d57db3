"""Exchanges of options that bring a choice of one option per group within its budgets, or lower the sum of its keys."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.int64]
Floats = NDArray[np.float64]

TINY = 1e-9
"""Slack for rounding, relative to the budgets."""


def starts_of(group: Array) -> Array:
    """Where the options of each group start, those of one group following those of another; shape (groups,).

    >>> starts_of(np.array([0, 0, 3, 3, 3, 4])).tolist()
    [0, 2, 5]
    """
    is_first = np.empty(len(group), dtype=bool)
    is_first[:1] = True
    np.not_equal(group[1:], group[:-1], out=is_first[1:])
    starts: Array = is_first.nonzero()[0]
    return starts


def repaired(key: Array, share: Floats, group: Array, chosen: Array) -> Array:
    """A choice with as little excess over the budgets as exchanges of single options reach.

    Args:
        key: Shape (options,): what counts against an option beside the budgets.
        share: Shape (options, resources): what an option takes of each budget.
        group: Shape (options,), ascending: the group of each option; every group has one.
        chosen: Shape (groups,): the option of each group to begin with.
    """
    chosen = chosen.copy()
    free = 1 - share.take(chosen, axis=0).sum(axis=0)
    starts = np.searchsorted(group, np.arange(len(chosen) + 1))
    largest = max(1, int(key.max()))
    change, part = np.empty_like(share), np.empty_like(share)
    worth = np.empty(len(share))
    every = np.ones(len(free))

    def exchange(rows: slice, old: Array) -> None:
        """Renews what the exchange of some options for the chosen ones of their groups would change."""
        np.subtract(share[rows], share.take(old, axis=0), out=change[rows])
        # What the exchange takes of the budgets counts against it.
        takes = np.maximum(0.0, change[rows]) @ every
        takes += np.maximum(0, key[rows] - key[old]) / largest
        np.divide(1.0, takes + 0.01, out=worth[rows])

    exchange(slice(None), chosen[group])
    for _ in range(2 * len(chosen)):
        if free.min() >= -TINY:
            break
        # What is free already is not freed: no exchange lowers the excess by more than it is.
        np.maximum(change, free, out=part)
        fewer = np.add.reduce(np.maximum(0.0, free)) - part @ every
        pick = int(np.argmax(fewer * worth))
        if fewer[pick] <= TINY:
            break
        free = free - change[pick]
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
    chosen, size = starts.copy(), len(key)
    # The key, and what is taken of each budget that is asked for; the last column stands for no option.
    columns = np.flatnonzero(share.any(axis=0))
    values = np.zeros((1 + len(columns), size + 1))
    values[0, :size], values[1:, :size] = key, penalty * share[:, columns].T
    # Options of each group, filled up with the last column.
    counts = np.bincount(group, minlength=chosen.shape[1])
    ends = np.cumsum(counts)
    members = np.arange(counts.max()) + (ends - counts)[:, None]
    members = np.where(members < ends[:, None], np.argsort(group, kind="stable")[np.minimum(members, size - 1)], size)
    left = np.arange(len(chosen))
    # What is left of the budgets is free: an exchange cannot lower that by less than what it leaves.  Keys have no end.
    free = np.full((1 + len(columns), len(chosen)), -np.inf)
    free[1:] = penalty * (1 - share[chosen][:, :, columns].sum(axis=1)).T
    # What each exchange changes, shape (values, starts, options).
    change = values[:, None, :] - values[:, chosen[:, np.append(group, 0)]]
    part, total = np.empty_like(change), np.empty_like(change[0])
    for _ in range(2 * chosen.shape[1]):
        np.maximum(change, free[:, :, None], out=part)
        np.add.reduce(part, axis=0, out=total)
        pick = total[:, :size].argmin(axis=1)
        row = np.arange(len(left))
        lower = (total[row, pick] < np.maximum(0.0, free[1:]).sum(axis=0) - TINY * penalty).nonzero()[0]
        if 2 * len(lower) <= len(left):  # fewer copies than at each start that is done
            if not len(lower):
                break
            left, pick, free, change = left[lower], pick[lower], free[:, lower], change[:, lower]
            lower = row[: len(left)]
            part, total = part[:, : len(left)], total[: len(left)]
        else:
            pick = pick[lower]
        free[1:, lower] -= change[1:, lower, pick]
        of = group[pick]
        chosen[left[lower], of] = pick
        same = members[of]
        renewed = values.take(same, axis=1)
        renewed -= values.take(pick, axis=1)[:, :, None]
        change[:, lower[:, None], same] = renewed
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
    same = np.zeros((none, none + 1), dtype=bool)
    same[:, :none] = of[:, None] == of
    columns = np.flatnonzero(share.any(axis=0)).tolist()
    change, cost = np.zeros((none + 1, share.shape[1])), np.zeros(none + 1)
    free_share, free_key = share.take(free, axis=0), key[free]
    for _ in range(2 * len(chosen)):
        cost[:none] = free_key - key[chosen[of]]
        change[:none] = penalty * (free_share - share.take(chosen[of], axis=0))
        over = penalty * (share.take(chosen, axis=0).sum(axis=0) - 1)
        # One of the two has to lower something that counts.
        ones = np.flatnonzero((cost < 0) | ((change < 0) & (over > 0)).any(axis=1))
        if not len(ones):
            break
        total = np.add.outer(cost[ones], cost)
        part = np.empty_like(total)
        for column in columns:
            np.add.outer(change[ones, column], change[:, column] + over[column], out=part)
            np.maximum(part, 0.0, out=part)
            np.add(total, part, out=total)
        total[same[ones]] = np.inf
        one, other = divmod(int(total.argmin()), none + 1)
        if total[one, other] >= np.maximum(0.0, over).sum() - TINY * penalty:
            break
        one = int(ones[one])
        for pick in (one, other):
            if pick < none:
                chosen[of[pick]] = free[pick]
    return chosen
