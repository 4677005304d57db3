"""Whether a multiple-choice knapsack has any choice, by partial choices that no prices and no other one exclude."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwmodel.exchanges import TINY, Array, Floats, starts_of

ROUNDING = 1e-12
"""Difference between sums of shares that counts as none."""

COMPARED = 128
"""Partial choices that all others are compared with at once."""

IS_LATER = np.triu(np.ones((COMPARED, COMPARED), dtype=bool), 1)
"""Which of so many come after which."""

HOPELESS = 34.0
"""Logarithm of the number of choices that the best prices leave open above which enumeration comes to no end."""

RATES = np.geomspace(1, 1000, 16)
"""Rates of decay with which these choices are counted, in units of what the prices leave."""

CROWD = 2
"""Partial choices that are compared with one another at most, in units of those that are kept."""

ALL_CROWDS = 6
"""The same, in all steps together, where it ends if there are more."""


FIRST_PRICES = 9
"""Prices that leave out most of what all do: where there are many partial choices, these come first."""

MANY = 2_000
"""Partial choices that are many."""


def any_within(share: Floats, group: Array, weights: Floats, most: int, *, gives_up: bool) -> tuple[Array | None, bool]:
    """A choice of one option per group within the budgets, and whether it is certain that there is none if none came.

    Groups are gone through one after the other.  Of the partial choices those stay that the cheapest options of the
    groups to come can complete at all prices, and that take less of some budget than any other one.

    Args:
        share: Shape (options, resources): what an option takes of each budget.
        group: Shape (options,), ascending: the group of each option; every group has one.
        weights: Shape (prices, resources), each of sum 1: prices of whole budgets.
        most: Most partial choices that are kept.
        gives_up: Whether it ends where there are more, or `CROWD` times as many before they are compared with one
            another, or `ALL_CROWDS` times in all steps; otherwise those that may leave most of the budgets are kept.

    Returns:
        The option of each group, or None; and whether the answer is certain.
    """
    priced = share @ weights.T
    starts = starts_of(group)
    sizes = np.diff(starts, append=len(group))
    least = np.minimum.reduceat(priced, starts)
    extra = priced - np.repeat(least, sizes, axis=0)
    # Groups whose options differ most come first: there fewest are left.
    order = np.argsort(-np.add.reduceat(extra.max(axis=1), starts) / sizes, kind="stable")
    is_one = sizes == 1
    sums, rest = share[starts[is_one]].sum(axis=0)[None], least[~is_one].sum(axis=0)
    steps: list[tuple[int, Array, Array]] = []
    is_certain, compared = True, 0
    for of in order[~is_one[order]].tolist():
        rest = rest - least[of]
        low, high = int(starts[of]), int(starts[of] + sizes[of])
        # The first price alone leaves few enough for all of them.
        first = (sums @ weights[0])[:, None] + priced[low:high, 0]
        partial, option = np.nonzero(first <= 1 + TINY - rest[0])
        sums = sums.take(partial, axis=0) + share.take(low + option, axis=0)
        kept, fill = _completable(sums, weights, rest)
        if not len(kept):
            return None, is_certain
        compared += len(kept)
        if gives_up and (len(kept) > CROWD * most or compared > ALL_CROWDS * most):
            return None, False
        if len(kept) > CROWD * most:
            # To compare all of them with one another would take too long: those that leave least go first.
            best = np.argsort(fill, kind="stable")[: CROWD * most]
            kept, fill, is_certain = kept[best], fill[best], False
        if gives_up or len(kept) > most:
            least_kept = least_of(sums.take(kept, axis=0))
            kept, fill = kept[least_kept], fill[least_kept]
        if len(kept) > most:
            if gives_up:
                return None, False
            kept, is_certain = kept[np.argsort(fill, kind="stable")[:most]], False
        sums = sums.take(kept, axis=0)
        steps.append((of, partial[kept], low + option[kept]))
    fitting = np.flatnonzero((sums <= 1 + TINY).all(axis=1))
    if not len(fitting):
        return None, is_certain
    chosen, place = starts.copy(), int(fitting[0])
    for of, partial, option in reversed(steps):
        chosen[of], place = option[place], partial[place]
    return chosen, True


def _completable(sums: Floats, weights: Floats, rest: Floats) -> tuple[Array, Floats]:
    """Partial choices that the cheapest options of the groups to come complete at all prices, and how fully at most.

    Args:
        sums: Shape (partial choices, resources): what they take of each budget.
        weights: Shape (prices, resources).
        rest: Shape (prices,): what these options cost.
    """
    kept, fill = np.arange(len(sums)), np.zeros(len(sums))
    stages = (slice(FIRST_PRICES), slice(FIRST_PRICES, None)) if len(sums) > MANY else (slice(None),)
    for prices in stages:
        filled = weights[prices] @ sums.take(kept, axis=0).T + rest[prices, None]
        fill = np.maximum(fill, filled.max(axis=0, initial=0.0))
        left = np.flatnonzero(fill <= 1 + TINY)
        kept, fill = kept[left], fill[left]
    return kept, fill


def is_crowd(share: Floats, group: Array, weights: Floats) -> bool:
    """Whether the best prices leave so many choices that enumeration comes to no end.

    Args:
        share: Shape (options, resources): what an option takes of each budget.
        group: Shape (options,), ascending: the group of each option; every group has one.
        weights: Shape (resources,): these prices.
    """
    priced, starts = share @ weights, starts_of(group)
    least = np.minimum.reduceat(priced, starts)
    extra = priced - np.repeat(least, np.diff(starts, append=len(group)))
    return _log_choices(extra, starts, 1 - float(least.sum())) > HOPELESS


def _log_choices(extra: Floats, starts: Array, slack: float) -> float:
    """Upper bound of the logarithm of the number of choices that are together not dearer than allowed.

    Each counts as what its slack decays to at some rate, at least 1, which makes a product over the groups (Chernoff).

    Args:
        extra: Shape (options,): by what an option is dearer than the cheapest of its group.
        starts: Shape (groups,): where the options of each group start.
        slack: By what a choice may be dearer than the cheapest one.
    """
    decayed = np.exp(-RATES[:, None] * (extra / max(slack, TINY)))
    logs: Floats = np.log(np.add.reduceat(decayed, starts, axis=1)).sum(axis=1) + RATES
    return float(logs.min())


def least_of(sums: Floats) -> Array:
    """Rows that are nowhere above any other one; of equal ones one stays.

    Args:
        sums: Shape (rows, resources); differences up to `ROUNDING` of neighbours in a column count as none.

    Returns:
        Indices of these rows.
    """
    # None is above a later one everywhere.
    left = np.argsort(sums.sum(axis=1), kind="stable")
    # Ranks, integers of few bytes, are compared more quickly; few rows are not worth the sorting.
    values, slack = (sums, ROUNDING) if len(sums) <= COMPARED else (_ranks(sums), 0)
    columns = values.take(left, axis=0).T.copy()
    done = 0
    while done < len(left) - 1:
        ahead = columns[:, done:]
        few = min(COMPARED, len(left) - done)
        no_more: NDArray[np.bool_] = ahead[0, :few, None] <= ahead[0] + slack
        for column in ahead[1:]:
            no_more &= column[:few, None] <= column + slack
        no_more[:, :few] &= IS_LATER[:few, :few]
        kept = np.flatnonzero(~no_more.any(axis=0))
        left = np.concatenate([left[:done], left[done + kept]])
        columns = np.concatenate([columns[:, :done], ahead[:, kept]], axis=1)
        done += int(np.count_nonzero(kept < few))
    return left


def _ranks(sums: Floats) -> NDArray[np.unsignedinteger]:
    """Ranks in each column, equal ones of neighbours within `ROUNDING`."""
    order = sums.argsort(axis=0)
    sorted_sums = np.take_along_axis(sums, order, axis=0)
    ranks = np.zeros(sums.shape, dtype=np.min_scalar_type(len(sums)))
    np.cumsum(sorted_sums[1:] - sorted_sums[:-1] > ROUNDING, axis=0, out=ranks[1:])
    found = np.empty_like(ranks)
    np.put_along_axis(found, order, ranks, axis=0)
    return found
