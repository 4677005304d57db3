"""The search benchmark's own arithmetic: what it scores, what it repeats, what it leaves to another process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from hwmodel.networks import load_network

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def quality() -> Iterator[ModuleType]:
    """The benchmark, whose modules import each other by their plain names as they do on the command line."""
    sys.path.insert(0, str(FOLDER))
    try:
        import search_quality

        yield search_quality
    finally:
        sys.path.remove(str(FOLDER))


def test_hypervolume_of_two_steps(quality: ModuleType) -> None:
    """Two rectangles by hand: 0.1 * 0.5 below the better point, and 0.05 * 0.5 to the left of it."""
    accuracy, bits = np.array([0.9, 0.85, 0.84, 0.99]), np.array([1.5, 1.0, 1.2, 2.5])
    assert quality.hypervolume(accuracy, bits, 0.8, 2.0) == pytest.approx(0.1 * 0.5 + 0.05 * 0.5)
    assert quality.hypervolume(accuracy[3:], bits[3:], 0.8, 2.0) == 0.0


# A peer with the defaults of its library: BoTorch adds jitter to the exact cost's nearly noise-free covariance.
@pytest.mark.filterwarnings("ignore:A not p.d., added jitter")
@pytest.mark.parametrize("goal", ["budget", "front"])
@pytest.mark.parametrize(
    "name", ["ours", "ours, no profile", "BoTorch LogEI", "BoTorch qLogNEHVI", "evolutionary", "Sobol"]
)
def test_methods_stay_inside_the_budget(quality: ModuleType, name: str, goal: str) -> None:
    problem = quality.synthetic_problem(5, 0)
    targets = quality.targets_of(problem, goal)
    run = quality.Evaluations(problem, targets, 11, 0)
    quality.ALL_METHODS[name](run)
    assert len(run.points) == len(run.values) == 11
    assert run.feasible(np.array(run.points), targets[-1]).all()
    layers = problem.space.layer_indices(np.array(run.points))
    bits = problem.cost(layers)["bits_per_weight"]
    scores = quality.scores("synthetic5", 0, goal, problem.true_accuracy(layers), bits)
    steps = np.diff(scores)
    assert (steps <= 0).all() if goal == "budget" else (steps >= 0).all()


def test_finished_and_claimed_runs_are_left_alone(quality: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    with quality.claimed(path) as mine, quality.claimed(path) as other:
        assert (mine, other) == (True, False)
    with quality.claimed(path) as again:
        assert again
    path.with_suffix(".claim").write_text(f"{os.uname().nodename} 999999999")
    with quality.claimed(path) as taken_over:
        assert taken_over


def test_table_surrogate_finds_an_additive_truth(quality: ModuleType) -> None:
    import search_tabular

    rng = np.random.default_rng(0)
    sizes = np.array([3, 4, 2, 5])
    effects = [rng.normal(0, 0.7, size) for size in sizes]
    points = rng.integers(0, sizes, (90, 4))
    truth = search_tabular._accuracy(np.sum([row[points[:, i]] for i, row in enumerate(effects)], axis=0))
    settings, error = search_tabular.cross_validate(sizes, points, truth)
    assert error < 0.3 * 100 * truth.std()
    model = search_tabular.TableSurrogate.fit(sizes, points[:70], truth[:70], *settings)
    assert np.abs(model(points[70:]) - truth[70:]).mean() < 0.3 * truth.std()


def test_rows_of_the_table_can_be_drawn_again(quality: ModuleType) -> None:
    import search_rows

    from qat.search.sensitivity import gaussian_profile

    space = search_rows.table_space(load_network("resnet20"))
    profile = gaussian_profile(space)
    rng = np.random.default_rng(1)
    rows = [(point, float(value)) for point, value in zip(space.sample(220, rng), rng.random(220), strict=True)]
    first, second = (search_rows.draw(space, profile, rows, count, 0) for count in (30, 40))
    for (kind, point), (same_kind, same_point) in zip(first, second, strict=False):
        assert kind == same_kind
        assert (point == same_point).all()
    assert {kind for kind, _ in second} == set(search_rows.KINDS)
    assert len({tuple(point) for _, point in second}) == 40


def test_rows_of_the_table_survive_a_kill_and_any_order(quality: ModuleType, tmp_path: Path) -> None:
    import search_rows

    path = tmp_path / "rows.csv"
    rows = [(number, "level", np.array([number, 1]), 0.5 + number / 8, 1.25) for number in (2, 0, 1)]
    lines = [search_rows.text_of(row) for row in rows]
    path.write_text("header\n" + "".join(lines[:2]) + lines[2][:-1], encoding="utf-8")
    assert [row[0] for row in search_rows.read_rows(path, 2)] == [0, 2]
    path.write_text("header\n" + "".join(lines), encoding="utf-8")
    found = search_rows.read_rows(path, 2)
    assert [(row[0], row[1], row[2].tolist(), row[3]) for row in found] == [
        (number, "level", [number, 1], 0.5 + number / 8) for number in range(3)
    ]
