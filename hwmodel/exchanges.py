"""Exchanges of options that bring a choice of one option per group within its budgets, or lower the sum of its keys."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.int64]
Floats = NDArray[np.float64]

TINY = 1e-9
"""Slack for rounding, relative to the budgets."""

MOST_EXCHANGES = 8
"""Exchanges per group after which none follows; nearly always one or two are enough."""


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
    free = 1 - np.add.reduce(share.take(chosen, axis=0))
    if min(free.tolist()) >= -TINY:
        return chosen
    # The last row is the key: it counts against an option, and there is nothing that it could free.
    values = np.empty((len(free) + 1, len(share)))
    values[:-1], values[-1] = share.T, key / max(1, int(key.max()))
    every, freed = np.ones(len(values)), np.ones(len(values))
    freed[-1] = 0.0
    free = np.append(free, 1.0)
    starts = np.searchsorted(group, np.arange(len(chosen) + 1)).tolist()
    # What the exchange of an option for the chosen one of its group changes; what it takes counts against it.
    change = values - values.take(chosen.take(group), axis=1)
    part = np.maximum(change, 0.0)
    worth = 1.0 / (every.dot(part) + 0.01)
    for _ in range(MOST_EXCHANGES * len(chosen)):
        # What is free already is not freed: no exchange lowers the excess by more than it is.
        np.maximum(change, free[:, None], out=part)
        fewer = freed.dot(np.maximum(free, 0.0)) - freed.dot(part)
        pick = int((fewer * worth).argmax())
        if fewer[pick] <= TINY:
            break
        free = free - change[:, pick]
        free[-1] = 1.0
        of = int(group[pick])
        chosen[of] = pick
        if min(free.tolist()) >= -TINY:
            break
        same = slice(starts[of], starts[of + 1])
        change[:, same] = values[:, same] - values[:, pick, None]
        worth[same] = 1.0 / (every.dot(np.maximum(change[:, same], 0.0)) + 0.01)
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
    size, groups = len(key), starts.shape[1]
    # Behind the options one that changes nothing, and one that is never taken; both are of a group of their own.
    none, never = size, size + 1
    # The key, and what is taken of each budget that is asked for.
    columns = np.flatnonzero(share.any(axis=0))
    values = np.zeros((1 + len(columns), size + 2))
    values[0, :size], values[1:, :size] = key, penalty * share[:, columns].T
    values[0, never] = np.inf
    # Options of each group, filled up with the last.
    counts = np.bincount(group, minlength=groups + 1)
    ends = np.cumsum(counts)
    members = np.arange(counts.max()) + (ends - counts)[:, None]
    by_group = np.argsort(group, kind="stable")
    members = np.where(members < ends[:, None], by_group[np.minimum(members, size - 1)], never)
    group = np.append(group, [groups, groups])
    chosen = np.column_stack([starts, np.full(len(starts), none)])
    left, rows = np.arange(len(chosen)), (size + 2) * np.arange(len(chosen))
    # What is left of the budgets is free: an exchange cannot lower that by less than what it leaves.
    free = penalty * (1 - share[starts][:, :, columns].sum(axis=1)).T
    # What each exchange changes, shape (values, starts, options).
    change = values[:, None] - values.take(chosen[:, group], axis=1)
    part, total = np.empty_like(change[1:]), np.empty_like(change[0])
    offsets = change[0].size * np.arange(len(values))[:, None, None]
    for _ in range(MOST_EXCHANGES * groups):
        np.maximum(change[1:], free[:, :, None], out=part)
        np.add.reduce(part, axis=0, out=total)
        total += change[0]
        pick = total.argmin(axis=1)
        is_done = total.take(rows + pick) >= total[:, none] - TINY * penalty
        done = int(np.count_nonzero(is_done))
        if 2 * done >= len(left):  # fewer copies than at each start that is done
            if done == len(left):
                break
            lower = np.flatnonzero(~is_done)
            left, pick, free, change = left[lower], pick[lower], free[:, lower], change.take(lower, axis=1)
            rows, part, total = rows[: len(left)], part[:, : len(left)], total[: len(left)]
            offsets = total.size * np.arange(len(values))[:, None, None]
        elif done:
            pick[is_done] = none
        free -= change[1:].reshape(len(columns), total.size).take(rows + pick, axis=1)
        of = group.take(pick)
        chosen[left, of] = pick
        same = members.take(of, axis=0)
        renewed = values.take(same, axis=1) - values.take(pick, axis=1)[:, :, None]
        change.reshape(-1)[same + rows[:, None] + offsets] = renewed
    return chosen[:, :groups]


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
    for _ in range(MOST_EXCHANGES * len(chosen)):
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
