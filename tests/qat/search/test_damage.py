from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from qat.search import damage
from qat.search.damage import fit_damage


def sample(seed: int, count: int = 30, noise: float = 0.05) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Damages, outcomes and true values of a problem that the model can express."""
    rng = np.random.default_rng(seed)
    weights = np.exp(rng.normal(0, 0.7, 6))
    damages = rng.random((count, 6, 2)) / 6
    truth = 1.5 - (damages @ np.array([2.0, 0.5])) @ weights
    return damages, truth + rng.normal(0, noise, count), truth


def test_recovers_what_it_can_express() -> None:
    damages, outcomes, _ = sample(0, count=60)
    held_out, _, truth = (part[60:] for part in sample(0, count=200))
    mean, std = fit_damage(damages, outcomes).posterior(held_out)
    assert np.sqrt(np.mean((mean - truth) ** 2)) < 0.05
    assert np.mean(np.abs(mean - truth) < 2 * std) > 0.85


def test_uncertainty_grows_away_from_the_trials() -> None:
    damages, outcomes, _ = sample(1)
    model = fit_damage(damages, outcomes)
    near, far = model.posterior(np.stack([damages[0], 5 * damages[0]]))[1]
    assert far > 2 * near


def test_draws_scatter_around_the_posterior() -> None:
    """Around its mean, and about twice as widely: u, which would take back a part, stays as it is."""
    damages, outcomes, _ = sample(3, count=800)
    model = fit_damage(damages, outcomes)
    mean, std = model.posterior(damages[:5])
    rng = np.random.default_rng(0)
    drawn = np.array([model.draw(rng)(damages[:5]) for _ in range(400)])
    np.testing.assert_allclose(np.median(drawn, axis=0), mean, atol=0.6 * std.max())
    assert (drawn.std(axis=0) < 3 * std).all() and (drawn.std(axis=0) > std).all()
    more = damages[:1].repeat(2, axis=0)
    more[1] *= 1.5
    assert all(np.diff(model.draw(rng)(more))[0] < 0 for _ in range(50))


def test_the_gradient_is_that_of_the_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    original = damage.minimize

    def spy(objective, start, **options):  # type: ignore[no-untyped-def]
        seen["objective"], seen["start"] = objective, start
        return original(objective, start, **options)

    monkeypatch.setattr(damage, "minimize", spy)
    fit_damage(*sample(2, count=12)[:2])
    at = seen["start"] + np.random.default_rng(0).normal(0, 0.3, len(seen["start"]))
    numeric = approx_fprime(at, lambda x: seen["objective"](x)[0], 1e-7)
    np.testing.assert_allclose(seen["objective"](at)[1], numeric, atol=2e-4)


def test_equal_trials_and_a_single_dimension() -> None:
    damages = np.zeros((3, 1, 2))
    mean, std = fit_damage(damages, np.zeros(3)).posterior(np.ones((2, 1, 2)))
    assert np.isfinite(mean).all() and (std > 0).all() and (mean < 0).all()


def test_distances_by_product_are_the_distances() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.exponential(size=(7, 5, 2)), rng.exponential(size=(4, 5, 2))
    first[0] = second[0]
    found = damage._distances_by_product(first, second)
    np.testing.assert_allclose(found, damage._distances(first, second), atol=1e-12)
    assert (found >= 0).all()
