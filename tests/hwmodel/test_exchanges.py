"""Exchanges keep the budgets, and spare the search from asking the same twice or asking the solver at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel import LayerConfig, NetworkConfig, WeightFormat, highs, load_board, load_network, problem
from hwmodel.choices import Choices
from hwmodel.exchanges import Array, Floats, descended, descended_by_pairs, repaired
from hwmodel.knapsack import least_bottleneck
from hwmodel.scheduler import Scheduler, search

PENALTY = 50.0


def objective(key: Floats, share: Floats, chosen: Array) -> float:
    """Keys of a choice and its penalty."""
    return float(key[chosen].sum() + PENALTY * np.maximum(0.0, share[chosen].sum(axis=0) - 1).sum())


def random_options(pick: np.random.Generator) -> tuple[Floats, Floats, Array, Array]:
    """Keys, shares and groups of some options, and one of each group."""
    groups = int(pick.integers(1, 6))
    group = np.repeat(np.arange(groups), pick.integers(1, 6, groups))
    key, share = pick.random(len(group)), pick.random((len(group), int(pick.integers(1, 5)))) * 2 / groups
    start = np.array([pick.choice(np.flatnonzero(group == one)) for one in range(groups)])
    return key, share, group, start


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_single_exchange_lowers_what_single_exchanges_end_in(seed: int) -> None:
    pick = np.random.default_rng(seed)
    key, share, group, start = random_options(pick)
    others = np.array([pick.choice(np.flatnonzero(group == one)) for one in range(len(start))])
    found = descended(key, share, group, np.array([start, others, start]), PENALTY)
    assert (found[0] == found[2]).all()
    for begin, chosen in zip((start, others), found, strict=False):
        assert group[chosen].tolist() == list(range(len(start)))
        least = objective(key, share, chosen)
        assert least <= objective(key, share, begin) + 1e-6
        for option in range(len(group)):
            other = chosen.copy()
            other[group[option]] = option
            assert objective(key, share, other) >= least - 1e-6


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_exchange_of_two_lowers_what_exchanges_of_two_end_in(seed: int) -> None:
    pick = np.random.default_rng(seed)
    key, share, group, start = random_options(pick)
    free = np.flatnonzero(pick.random(len(group)) < 0.8)
    chosen = descended_by_pairs(key, share, group, free, start, PENALTY)
    assert group[chosen].tolist() == list(range(len(start)))
    least = objective(key, share, chosen)
    assert least <= objective(key, share, start) + 1e-6
    for one in free:
        for two in free:
            other = chosen.copy()
            other[group[one]] = one
            if group[two] != group[one]:
                other[group[two]] = two
            assert objective(key, share, other) >= least - 1e-6


def test_pairs_where_no_single_exchange_helps() -> None:
    """Either group alone would move the excess from one budget to the other."""
    share = np.array([[0.6, 0.5], [0.3, 0.7], [0.5, 0.5], [0.6, 0.2]])
    group, key = np.array([0, 0, 1, 1]), np.zeros(4)
    start = np.array([0, 2])
    for single in (
        repaired(np.zeros(4, dtype=np.int64), share, group, start),
        descended(key, share, group, start[None], 1.0)[0],
    ):
        assert (share[single].sum(axis=0) > 1).any()
    assert descended_by_pairs(key, share, group, np.arange(4), start, 1.0).tolist() == [1, 3]


@pytest.mark.parametrize("seed", range(10))
def test_no_limit_is_asked_about_that_a_choice_found_earlier_keeps(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pick = np.random.default_rng(seed)
    groups = 24
    keys, uses = zip(*((pick.integers(1, 500, 12), pick.integers(1, 100, (12, 4))) for _ in range(groups)), strict=True)
    ask, kept = problem.Problem.any_choice, [10**6]

    def recorded(self: problem.Problem, weights: Floats, effort: problem.Effort) -> tuple[Array | None, Floats, bool]:
        assert self.choices.key.max() < min(kept)
        found, weights, is_proven = ask(self, weights, effort)
        if found is not None:
            kept.append(int(self.choices.key[np.isin(self.choices.rows, found)].max()))
        return found, weights, is_proven

    monkeypatch.setattr(problem.Problem, "any_choice", recorded)
    solution = least_bottleneck(Choices.of(keys, uses), np.full(4, 35 * groups))
    assert solution.value == min(kept) < 10**6


def test_hard_case_needs_no_branch_and_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNet-50 on zcu102 with weights that stream: the same few options were asked about at limit after limit."""
    network, board = load_network("resnet50"), load_board("zcu102")
    choices = [
        *(LayerConfig(bits, 4) for bits in (1, 2, 3, 4, 6, 8)),
        *(LayerConfig(1, 4, sparsity, WeightFormat.BINARY_PLUS_SPARSE) for sparsity in (0.98, 0.95, 0.9, 0.8)),
    ]
    mix = np.random.default_rng(0).integers(0, len(choices), (61, len(network.weighted)))[60]
    pairs = zip(network.weighted, mix, strict=True)
    config = NetworkConfig(tuple((layer.name, choices[choice]) for layer, choice in pairs))
    asked: list[int] = []

    def counted(cost: Floats, use: Array, group: Array, budgets: Array, groups: int) -> tuple[Array | None, bool]:
        asked.append(len(cost))
        return highs.branch_and_cut(cost, use, group, budgets, groups)

    monkeypatch.setattr(problem, "branch_and_cut", counted)
    best = search(Scheduler(network, board).segments(config), board)
    assert best is not None
    assert best.is_proven
    assert not asked  # 12 times, of up to 243 options, before pairs were exchanged and answers kept
    assert (best.offchip_bits, best.interval_cycles) <= (79_645_977, 5_400_936)
