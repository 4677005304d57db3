"""Whether a multiple-choice knapsack has any choice, by partial choices that no prices and no other one exclude."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwmodel.exchanges import TINY, Array, Floats, starts_of

ROUNDING = 1e-12
"""Difference between sums of shares that counts as none."""

COMPARED = 64
"""Partial choices that all others are compared with at once."""


def any_within(share: Floats, group: Array, weights: Floats, most: int, *, gives_up: bool) -> tuple[Array | None, bool]:
    """A choice of one option per group within the budgets, and whether it is certain that there is none if none came.

    Groups are gone through one after the other.  Of the partial choices those stay that the cheapest options of the
    groups to come can complete at all prices, and that take less of some budget than any other one.

    Args:
        share: Shape (options, resources): what an option takes of each budget.
        group: Shape (options,), ascending: the group of each option; every group has one.
        weights: Shape (prices, resources), each of sum 1: prices of whole budgets.
        most: Most partial choices that are kept.
        gives_up: Whether it ends where there are more; otherwise those that may leave most of the budgets are kept.

    Returns:
        The option of each group, or None; and whether the answer is certain.
    """
    priced = share @ weights.T
    starts = starts_of(group)
    sizes = np.diff(starts, append=len(group))
    least = np.minimum.reduceat(priced, starts)
    extra = (priced - np.repeat(least, sizes, axis=0)).max(axis=1)
    # Groups whose options differ most come first: there fewest are left.
    order = np.argsort(-np.add.reduceat(extra, starts) / sizes, kind="stable")
    is_one = sizes == 1
    sums, rest = share[starts[is_one]].sum(axis=0)[None], least[~is_one].sum(axis=0)
    steps: list[tuple[int, Array, Array]] = []
    is_certain = True
    for of in order[~is_one[order]].tolist():
        rest = rest - least[of]
        low, high = int(starts[of]), int(starts[of] + sizes[of])
        # The first price alone leaves few enough for all of them.
        first = (sums @ weights[0])[:, None] + priced[low:high, 0]
        partial, option = np.nonzero(first <= 1 + TINY - rest[0])
        sums = sums[partial] + share[low + option]
        fill = (sums @ weights.T + rest).max(axis=1)
        kept = np.flatnonzero(fill <= 1 + TINY)
        if gives_up or len(kept) > most:
            kept = kept[least_of(sums[kept])]
        if len(kept) > most:
            if gives_up:
                return None, False
            kept, is_certain = kept[np.argsort(fill[kept], kind="stable")[:most]], False
        sums = sums[kept]
        steps.append((of, partial[kept], low + option[kept]))
    fitting = np.flatnonzero((sums <= 1 + TINY).all(axis=1))
    if not len(fitting):
        return None, is_certain
    chosen, place = starts.copy(), int(fitting[0])
    for of, partial, option in reversed(steps):
        chosen[of], place = option[place], partial[place]
    return chosen, True


def least_of(sums: Floats) -> Array:
    """Rows that are nowhere above any other one; of equal ones one stays.

    Args:
        sums: Shape (rows, resources); differences up to `ROUNDING` count as none.

    Returns:
        Indices of these rows.
    """
    if len(sums) < 2:
        return np.arange(len(sums))
    columns = np.flatnonzero(np.ptp(sums, axis=0) > ROUNDING)
    if not len(columns):
        return np.arange(1)
    # None is above a later one everywhere.
    left = np.argsort(sums.sum(axis=1), kind="stable")
    sorted_sums = sums[left][:, columns].T.copy()
    done = 0
    while done < len(left) - 1:
        ahead = sorted_sums[:, done:]
        few = min(COMPARED, len(left) - done)
        no_more: NDArray[np.bool_] = ahead[0, :few, None] <= ahead[0] + ROUNDING
        for values in ahead[1:]:
            no_more &= values[:few, None] <= values + ROUNDING
        no_more[:, :few] &= np.triu(np.ones((few, few), dtype=bool), 1)
        kept = np.flatnonzero(~no_more.any(axis=0))
        left = np.concatenate([left[:done], left[done + kept]])
        sorted_sums = np.concatenate([sorted_sums[:, :done], ahead[:, kept]], axis=1)
        done += int(np.count_nonzero(kept < few))
    return left
