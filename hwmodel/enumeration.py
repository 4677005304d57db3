"""Every choice of a multiple-choice knapsack that no prices exclude, where those are few."""

from __future__ import annotations

import numpy as np

from hwmodel.exchanges import TINY, Array, Floats


def enumerated(share: Floats, group: Array, weights: Floats, most: int) -> tuple[Array, bool]:
    """All choices whose price is within the budgets at each of some prices.

    Groups are gone through one after the other.  Of the partial choices those stay that the cheapest options of the
    groups to come can complete at all prices, so that near a bound that is nearly reached few do.

    Args:
        share: Shape (options, resources): what an option takes of each budget.
        group: Shape (options,), ascending: the group of each option; every group has one.
        weights: Shape (prices, resources), each of sum 1: prices of whole budgets.
        most: Partial choices at which this is given up.

    Returns:
        Shape (choices, groups): options of each choice; none if it was given up.  And whether it was not.
    """
    priced = share @ weights.T
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    least = np.minimum.reduceat(priced, starts)
    extra = (priced - least[group]).max(axis=1)
    # Groups whose options differ most come first: there fewest are left.
    spread = np.add.reduceat(extra, starts) / np.diff(starts, append=len(group))
    order = np.argsort(-spread, kind="stable").tolist()
    ends = [*starts[1:].tolist(), len(group)]
    sums, rest = np.zeros((1, share.shape[1])), least.sum(axis=0)
    steps: list[tuple[int, Array, Array]] = []
    for of in order:
        rest = rest - least[of]
        low, high = int(starts[of]), ends[of]
        if len(sums) * (high - low) > most:
            return np.empty((0, len(starts)), dtype=np.int64), False
        # The first price alone leaves few enough for all of them.
        first = (sums @ weights[0])[:, None] + priced[low:high, 0]
        partial, option = np.nonzero(first <= 1 + TINY - rest[0])
        sums = sums[partial] + share[low + option]
        kept = np.flatnonzero((sums @ weights.T <= 1 + TINY - rest).all(axis=1))
        sums = sums[kept]
        steps.append((of, partial[kept], low + option[kept]))
    chosen = np.empty((len(sums), len(starts)), dtype=np.int64)
    place = np.arange(len(sums))
    for of, partial, option in reversed(steps):
        chosen[:, of] = option[place]
        place = partial[place]
    return chosen, True
