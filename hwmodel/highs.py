"""Multiple-choice knapsacks for HiGHS: branch and cut."""

from __future__ import annotations

import numpy as np

from hwmodel.exchanges import Array, Floats

INFEASIBLE = 2
"""Status of `scipy.optimize.milp` where there is no solution."""


def branch_and_cut(cost: Floats, use: Array, group: Array, budgets: Array, groups: int) -> tuple[Array | None, bool]:
    """The cheapest choice within the budgets or None, and whether that is proven.

    Args:
        cost: Shape (options,).
        use: Shape (options, resources).
        group: Shape (options,): the group of each option.
        budgets: Shape (resources,).
        groups: Number of groups; if one has no option, there is no choice.
    """
    # Here, so that whoever only reads packed files or costs needs numpy alone.
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, vstack

    size = len(cost)
    if len(np.unique(group)) < groups:
        return None, True
    one_each = csr_array((np.ones(size), (group, np.arange(size))), shape=(groups, size))
    share = use / np.maximum(budgets, 1)
    constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(share.T, -np.inf, 1)]
    excluded = csr_array((0, size))
    while True:
        cuts = [LinearConstraint(excluded, -np.inf, groups - 1)] if excluded.shape[0] else []
        result = milp(
            cost,
            constraints=[*constraints, *cuts],
            integrality=np.ones(size),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0.0},
        )
        if result.x is None:
            return None, result.status == INFEASIBLE
        taken = np.flatnonzero(result.x > 0.5)
        if (use[taken].sum(axis=0) <= budgets).all():
            return taken, result.status == 0
        # Within the solver's tolerance, but not within the budget: exclude exactly this choice, ask again.
        row = csr_array((np.ones(len(taken)), (np.zeros(len(taken), dtype=int), taken)), shape=(1, size))
        excluded = vstack([excluded, row], format="csr")
