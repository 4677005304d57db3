"""Exchanges keep the budgets, and spare the search from asking the same twice or asking the solver at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel import LayerConfig, NetworkConfig, highs, knapsack, load_board, load_network
from hwmodel.exchanges import TINY, Array, Floats, paired, repaired
from hwmodel.knapsack import Choices, least_bottleneck
from hwmodel.scheduler import Scheduler, search


def extra_of(share: Floats, group: Array) -> tuple[Floats, float]:
    """How much dearer than the cheapest of its group each option is at equal prices, and what there is to spare."""
    priced = share.mean(axis=1)
    least = np.array([priced[group == one].min() for one in range(int(group[-1]) + 1)])
    return priced - least[group], float(1 - least.sum())


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_pairs_end_in_a_choice_within_the_budgets_or_none(seed: int) -> None:
    pick = np.random.default_rng(seed)
    groups = int(pick.integers(1, 8))
    group = np.repeat(np.arange(groups), pick.integers(1, 6, groups))
    share = pick.random((len(group), int(pick.integers(1, 5)))) * 2 / groups
    chosen = paired(share, group, *extra_of(share, group))
    if chosen is not None:
        assert group[chosen].tolist() == list(range(groups))
        assert (share[chosen].sum(axis=0) <= 1 + TINY).all()


def test_pairs_where_no_single_exchange_helps() -> None:
    """Either group alone would move the excess from one budget to the other."""
    share = np.array([[0.6, 0.5], [0.3, 0.7], [0.5, 0.5], [0.6, 0.2]])
    group = np.array([0, 0, 1, 1])
    start = np.array([0, 2])
    single = repaired(np.zeros(4, dtype=np.int64), share, group, start)
    assert (share[single].sum(axis=0) > 1).any()
    chosen = paired(share, group, np.array([0, 0.1, 0, 0.1]), 0.01)  # sets out from the same choice
    assert chosen is not None
    assert chosen.tolist() == [1, 3]


@pytest.mark.parametrize("seed", range(10))
def test_no_limit_is_asked_about_that_a_choice_found_earlier_keeps(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pick = np.random.default_rng(seed)
    groups = 24
    keys, uses = zip(*((pick.integers(1, 500, 12), pick.integers(1, 100, (12, 4))) for _ in range(groups)), strict=True)
    ask, kept = knapsack._Problem.any_choice, [10**6]

    def recorded(self: knapsack._Problem, weights: Floats, *, may_solve: bool) -> tuple[Array | None, Floats, bool]:
        assert self.choices.key.max() < min(kept)
        found, weights, is_proven = ask(self, weights, may_solve=may_solve)
        if found is not None:
            kept.append(int(self.choices.key[np.isin(self.choices.rows, found)].max()))
        return found, weights, is_proven

    monkeypatch.setattr(knapsack._Problem, "any_choice", recorded)
    solution = least_bottleneck(Choices.of(keys, uses), np.full(4, 35 * groups))
    assert solution.value == min(kept) < 10**6


def test_hard_case_needs_little_branch_and_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNet-50 on zcu102 with weights that stream: the same few options were asked about at limit after limit."""
    network, board = load_network("resnet50"), load_board("zcu102")
    choices = [
        *(LayerConfig(bits, 4) for bits in (1, 2, 3, 4, 6, 8)),
        *(LayerConfig(1, 4, sparsity, "binary_plus_sparse") for sparsity in (0.98, 0.95, 0.9, 0.8)),
    ]
    mix = np.random.default_rng(0).integers(0, len(choices), (61, len(network.weighted)))[60]
    pairs = zip(network.weighted, mix, strict=True)
    config = NetworkConfig(tuple((layer.name, choices[choice]) for layer, choice in pairs))
    asked: list[int] = []

    def counted(
        cost: Floats, use: Array, group: Array, budgets: Array, groups: int, nodes: int | None = None
    ) -> tuple[Array | None, bool]:
        asked.append(len(cost))
        return highs.branch_and_cut(cost, use, group, budgets, groups, nodes)

    monkeypatch.setattr(knapsack, "branch_and_cut", counted)
    best = search(Scheduler(network, board).segments(config), board)
    assert best is not None
    assert len(asked) <= 3  # 12, of up to 243 options, before pairs were exchanged and answers kept
    assert max(asked, default=0) <= knapsack.CORE_OPTIONS
    assert (best.offchip_bits, best.interval_cycles) <= (79_645_977, 5_400_936)
