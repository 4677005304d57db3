from __future__ import annotations

import numpy as np
import pytest

from qat.errors import ConfigError, SearchError
from qat.search.trial import Fidelity, Screening, Target


def test_bounds_are_inclusive_and_relative() -> None:
    target = Target("board", {"compression": (20, None), "bram18": (None, 100)})
    columns = {"compression": np.array([20.0, 10.0, 30.0]), "bram18": np.array([100, 50, 150])}
    np.testing.assert_array_equal(target.feasible(columns), [True, False, False])
    violations = target.violations(columns)
    np.testing.assert_allclose(violations["compression"], [0, 0.5, 0])
    np.testing.assert_allclose(violations["bram18"], [0, 0, 0.5])
    assert target.admits({"compression": 25.0, "bram18": 3.0, "other": 1.0})
    assert not target.admits({"compression": 5.0, "bram18": 3.0})


def test_costs_that_are_no_number_are_infeasible_and_booleans_can_be_bound() -> None:
    target = Target("fits", {"fits": (1, None), "fps": (30, None)})
    columns = {"fits": np.array([True, False, True]), "fps": np.array([30.0, 30.0, np.nan])}
    np.testing.assert_array_equal(target.feasible(columns), [True, False, False])


def test_unknown_column() -> None:
    with pytest.raises(SearchError, match=r"target 't' bounds 'ram', which is no cost column; there are \['bram18'\]"):
        Target("t", {"ram": (None, 1)}).feasible({"bram18": np.zeros(1)})


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({}, "target 't' has no bounds"),
        ({"a": (None, None)}, "bounds nothing"),
        ({"a": (float("nan"), None)}, "bounds nothing"),
        ({"a": (2, 1)}, "expected low <= high"),
        ({"a": 3}, r"bounds\['a'\]=3, expected \(low, high\)"),
        ({"a": ("x", 3)}, r"expected \(low, high\)"),
    ],
)
def test_bad_bounds(bounds: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Target("t", bounds)


def test_screening() -> None:
    assert Screening.from_dict(Screening(0.5, 0.9).to_dict()) == Screening(0.5, 0.9)
    with pytest.raises(ConfigError, match=r"screening\.share=1, expected a share in \[0, 1\)"):
        Screening(1)
    with pytest.raises(ConfigError, match=r"screening\.least=nan, expected an accuracy in \[0, 1\]"):
        Screening(0.5, float("nan"))


def test_fidelity() -> None:
    assert Fidelity("short", 2, 0.25).effort == 0.5
    assert Fidelity.from_dict(Fidelity("short", 2, 0.25).to_dict()) == Fidelity("short", 2, 0.25)
    with pytest.raises(ConfigError, match=r"fidelity\.data_fraction=0, expected a share in \(0, 1\]"):
        Fidelity("none", 1, 0)
    with pytest.raises(ConfigError, match=r"fidelity\.epochs=-1, expected a number >= 0"):
        Fidelity("none", -1)
