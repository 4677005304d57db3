"""Options of a multiple-choice knapsack: those of all groups in arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hwmodel.exchanges import Array, starts_of

Mask = NDArray[np.bool_]

NO_LIMIT = 1 << 60


@dataclass(frozen=True)
class Choices:
    """Options of all groups, one group after the other; of each group one option is taken.

    Args:
        key: Shape (options,), integers >= 0.
        use: Shape (options, resources), integers >= 0.
        group: Shape (options,), ascending: the group of each option.
        until: Shape (options,): at limits of the key from this one on another option of the group uses no more of
            anything, so that this one need not be looked at; see `outdone_from`.
        rows: Shape (options,), ascending: where an option stood before others were left out.
        groups: Number of groups.
    """

    key: Array
    use: Array
    group: Array
    until: Array
    rows: Array
    groups: int

    @classmethod
    def of(cls, keys: Sequence[Array], uses: Sequence[Array], untils: Sequence[Array] | None = None) -> Choices:
        """Options by group: keys of shape (options,), uses of shape (options, resources)."""
        group = np.repeat(np.arange(len(keys)), [len(key) for key in keys])
        until = np.full(len(group), NO_LIMIT) if untils is None else np.concatenate(untils)
        return cls(np.concatenate(keys), np.concatenate(uses), group, until, np.arange(len(group)), len(keys))

    @cached_property
    def starts(self) -> Array:
        """Shape (groups that have options,): where those of each group start."""
        return starts_of(self.group)

    def take(self, kept: Array) -> Choices:
        """The options at these indices."""
        key, group, until, rows = (column.take(kept) for column in (self.key, self.group, self.until, self.rows))
        return Choices(key, self.use.take(kept, axis=0), group, until, rows, self.groups)

    def only(self, kept: Array) -> Choices | None:
        """The options at these indices; None if a group has none."""
        found = self.take(kept)
        return None if len(found.starts) < self.groups else found

    def counting(self, limit: int) -> Array:
        """The options that count where no key may be larger than `limit`."""
        counts: Array = ((self.key <= limit) & (limit < self.until)).nonzero()[0]
        return counts

    def at_cost(self, cost: Array) -> Choices:
        """The same options with other keys, all of them to be looked at."""
        return Choices(cost, self.use, self.group, np.full(len(cost), NO_LIMIT), self.rows, self.groups)


def outdone_from(key: Array, use: Array) -> Array:
    """The least key from which on an option of one group is outdone: another one uses no more of anything.

    Args:
        key: Shape (options,).
        use: Shape (options, resources).

    Returns:
        Shape (options,); `NO_LIMIT` where no option of the group uses as little.
    """
    no_more = np.ones((len(key), len(key)), dtype=bool)  # [i, j]: i uses no more than j
    for taken in use.T.copy():
        no_more &= taken[:, None] <= taken
    # Of options with equal use, the one with the smaller key stays, then the first.
    first = np.lexsort((np.arange(len(key)), key))
    rank = np.empty(len(key), dtype=np.int64)
    rank[first] = np.arange(len(key))
    outdoes = no_more & (~no_more.T | (rank[:, None] < rank))
    until: Array = np.where(outdoes, key[:, None], NO_LIMIT).min(axis=0, initial=NO_LIMIT)
    return until
