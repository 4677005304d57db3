"""Multiple-choice knapsacks for HiGHS: the linear relaxation, and branch and cut."""

from __future__ import annotations

import numpy as np

from hwmodel.exchanges import TINY, Array, Floats

INFEASIBLE = 2
"""Status of `scipy.optimize.milp` where there is no solution."""


def relaxed(share: Floats, group: Array) -> tuple[float, Floats, Floats]:
    """How full the fullest budget is at least if options may be mixed.

    Args:
        share: Shape (options, resources): what an option takes of each budget.
        group: Shape (options,), ascending: the group of each option; every group has one.

    Returns:
        The least fill; the mix, shape (options,), in which all but as many groups as there are budgets take one option
        whole; prices of the budgets, of sum 1 or all 0.
    """
    # Here, so that whoever only reads packed files or costs needs numpy alone.
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    size, resources = share.shape
    groups = int(group[-1]) + 1
    one_each = csr_array((np.ones(size), (group, np.arange(size))), shape=(groups, size + 1))
    result = linprog(
        np.append(np.zeros(size), 1.0),
        A_ub=np.column_stack([share.T, -np.ones(resources)]),
        b_ub=np.zeros(resources),
        A_eq=one_each,
        b_eq=np.ones(groups),
        method="highs-ds",
    )
    duals = np.maximum(0.0, -result.ineqlin.marginals)
    return float(result.x[-1]), result.x[:-1], duals / max(duals.sum(), TINY)


def branch_and_cut(
    cost: Floats, use: Array, group: Array, budgets: Array, groups: int, nodes: int | None = None
) -> tuple[Array | None, bool]:
    """The cheapest choice within the budgets or None, and whether that is proven.

    Args:
        cost: Shape (options,).
        use: Shape (options, resources).
        group: Shape (options,): the group of each option.
        budgets: Shape (resources,).
        groups: Number of groups; if one has no option, there is no choice.
        nodes: Most nodes of the search; None for no limit.
    """
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
            options={"mip_rel_gap": 0.0} | ({} if nodes is None else {"node_limit": nodes}),
        )
        if result.x is None:
            return None, result.status == INFEASIBLE
        taken = np.flatnonzero(result.x > 0.5)
        if (use[taken].sum(axis=0) <= budgets).all():
            return taken, result.status == 0
        # Within the solver's tolerance, but not within the budget: exclude exactly this choice, ask again.
        row = csr_array((np.ones(len(taken)), (np.zeros(len(taken), dtype=int), taken)), shape=(1, size))
        excluded = vstack([excluded, row], format="csr")
