"""Walks through the choices of a multiple-choice knapsack that exchange the best option at each step, also uphill.

A group whose option is exchanged rests for some steps, so that a walk does not go back.  What exceeds a budget costs
more with each step at which it does, and less with each at which it does not: a walk crosses the border of what is
within the budgets again and again, and does not need to know how much an excess should cost.

Source:
    Glover, Tabu search, ORSA Journal on Computing 1(3), 1989; Glover, Kochenberger, Critical event tabu search for
    multidimensional knapsack problems, in: Meta-Heuristics, Springer 1996.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from hwmodel.exchanges import Array, Floats

STEPS = 80
"""Exchanges of a walk that looks for a good choice."""

STEPS_TO_FIRST = 160
"""Exchanges of one that looks for any choice."""

REST = 4
"""Steps for which a group rests whose option was exchanged, if there are more groups."""

DEARER = 1.3
"""By what the cost of exceeding a budget grows with each step at which it is exceeded."""

CHEAPER = 0.85
"""By what it shrinks with each other step."""

SHORT = np.float32
"""Numbers of the walks: half as long ones are compared more quickly, and whoever takes a choice checks it exactly."""

ROUNDING = 1e-6
"""Share of a budget by which sums of them may exceed it."""


def walked(
    key: Floats, guides: Floats, share: Floats, group: Array, starts: Array, costs: Floats, *, to_first: bool
) -> list[Array]:
    """The best choice within the budgets, or over by `ROUNDING` of a budget at most, that each of some walks meets.

    Their first ones do not count.  The best of all comes first.

    Args:
        key: Shape (options,): what is summed.
        guides: Shape (walks, options): what each walk lowers beside excess over the budgets.
        share: Shape (options, resources): what an option takes of each budget.
        group: Shape (options,), ascending: the group of each option; every group has one.
        starts: Shape (walks, groups): the options with which walks begin.
        costs: Shape (resources,): what exceeding a budget by all of it costs at first.
        to_first: Whether all end where one of them meets a choice within the budgets.
    """
    walks, size = len(starts), len(key) + 1  # the last option stands for none
    row, rows = np.arange(walks), size * np.arange(walks)
    values = np.zeros((1 + share.shape[1], walks, size), dtype=SHORT)
    values[0, :, :-1], values[1:, :, :-1] = guides, share.T[:, None]
    values[0, :, -1] = np.inf
    flat_values = values.reshape(len(values), -1)
    counts = np.bincount(group)
    rest = min(REST, int(np.count_nonzero(counts > 1)) - 1)
    if rest < 0:
        return []  # there is nothing to exchange
    ends = np.cumsum(counts)
    members = np.arange(counts.max()) + (ends - counts)[:, None]
    members = np.where(members < ends[:, None], members, size - 1)
    chosen, places = starts.copy(), starts.shape[1] * row
    room = (1 - share[chosen].sum(axis=1).T).astype(SHORT)
    change = values - flat_values.take(rows[:, None] + chosen[:, np.append(group, 0)], axis=1)
    # Views: what is changed at few places is found by one index.
    lowers, takes, flat = change[0].reshape(-1), change[1:].reshape(len(room), walks * size), change.reshape(-1)
    offsets = walks * size * np.arange(len(values))[:, None, None]
    lowers[rows[:, None] + chosen] = np.inf
    part, total = np.empty_like(change[1:]), np.empty((walks, 1, size), dtype=SHORT)
    weights = np.repeat(costs[None].astype(SHORT), walks, axis=0)
    factors = np.array([CHEAPER, DEARER], dtype=SHORT)
    resting: deque[tuple[Array, Array]] = deque()
    steps = STEPS_TO_FIRST if to_first else STEPS
    olds, picks = (np.zeros((steps, walks), dtype=np.int64) for _ in range(2))
    rooms = np.full((steps, *room.shape), -np.inf, dtype=SHORT)
    for step in range(steps):
        np.maximum(change[1:], room[:, :, None], out=part)
        np.matmul(weights[:, None], part.transpose(1, 0, 2), out=total)
        total[:, 0] += change[0]
        pick = picks[step] = total[:, 0].argmin(axis=1)
        at = rows + pick
        room = rooms[step] = room - takes.take(at, axis=1)
        of = group.take(pick)
        spots = places + of
        olds[step] = chosen.take(spots)
        chosen.put(spots, pick)
        same = members.take(of, axis=0) + rows[:, None]
        lowers[same] = np.inf
        resting.append((same, at))
        if len(resting) > rest:
            same, at = resting.popleft()
            flat[same + offsets] = flat_values.take(same, axis=1) - flat_values.take(at, axis=1)[:, :, None]
            lowers[at] = np.inf
        exceeds = room < -ROUNDING
        weights *= factors.take(exceeds.T)
        if to_first and not exceeds.any(axis=0).all():
            break
    sums = key[starts].sum(axis=1) + np.cumsum(key[picks] - key[olds], axis=0)
    sums[(rooms < -ROUNDING).any(axis=1)] = np.inf
    best = sums.argmin(axis=0)
    found = []
    for walk in np.argsort(sums[best, row], kind="stable").tolist():
        if np.isfinite(sums[best[walk], walk]):
            taken = picks[: best[walk] + 1, walk]
            met = starts[walk].copy()
            met[group[taken]] = taken  # of several options of a group the last one stays
            found.append(met)
    return found
