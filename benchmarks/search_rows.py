"""Rows of the table of `search_tabular.py`: its space, how rows are drawn, and their file while it grows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hwmodel.network import NetworkSpec
from qat.search.sensitivity import SensitivityProfile, lagrange_path
from qat.search.space import LayerRule, SearchSpace, SpaceSettings
from qat.search.trial import FloatArray, IntArray

RULE = LayerRule(
    weight_bit_widths=(1, 2, 3, 4, 6, 8),
    significant_densities=(0.02, 0.05),
    sparse_densities=(0.25, 0.5),
    act_bit_widths=(8,),
)
"""What every layer may be: 18 choices."""

KINDS = ("lagrange", "level", "uniform", "mutation")
KIND_SHARES = (0.4, 0.15, 0.1, 0.35)
"""How rows are drawn: noisy allocations along a Lagrange path; layers scattered around one level of choices; uniformly
random; mutations of good rows."""

COLUMNS = ("number", "kind", "accuracy", "loss")


def table_space(network: NetworkSpec) -> SearchSpace:
    """The space of the table."""
    return SearchSpace.from_network(network, SpaceSettings(rule=RULE))


def draw(
    space: SearchSpace, profile: SensitivityProfile, rows: list[tuple[IntArray, float]], count: int, seed: int
) -> list[tuple[str, IntArray]]:
    """Kinds and points of the next rows, all from the rows so far: they may be scored in any order, at once.

    Args:
        space: Of the table.
        profile: Sensitivities of the space.
        rows: Points and accuracies so far; the same ones give the same next ones.
        count: Points to draw.
        seed: Of the table.
    """
    taken = {tuple(point.tolist()) for point, _ in rows}
    found: list[tuple[str, IntArray]] = []
    for number in range(len(rows), len(rows) + count):
        rng = np.random.default_rng([seed, number])
        while True:
            kind = str(rng.choice(KINDS, p=KIND_SHARES)) if rows else "lagrange"
            point = _draw_kind(kind, space, profile, rows, rng)
            if tuple(point.tolist()) not in taken:
                break
        taken.add(tuple(point.tolist()))
        found.append((kind, point))
    return found


def _draw_kind(
    kind: str,
    space: SearchSpace,
    profile: SensitivityProfile,
    rows: list[tuple[IntArray, float]],
    rng: np.random.Generator,
) -> IntArray:
    count = len(space.sizes)
    if kind == "uniform":
        return space.sample(1, rng)[0]
    if kind == "level":
        level, spread = rng.uniform(0, 1), rng.uniform(0.05, 0.3)
        place = np.clip(rng.normal(level, spread, count), 0, 1)
        return np.rint(place * (space.sizes - 1)).astype(np.int64)
    if kind == "lagrange":
        factors = np.exp(rng.normal(0, rng.choice([0.0, 0.3, 0.7, 1.2]), count))
        path = lagrange_path(profile.reweighted(factors), space.dimension_bits)
        bits = stored_bits(space, path) / sum(space.weights)
        # Uniform in stored bits per weight: the path has most of its steps where they matter least.
        point = path[int(np.argmin(np.abs(bits - rng.uniform(1.0, 4.0))))].copy()
        changes = int(rng.integers(0, 4))
    else:
        points = np.array([point for point, _ in rows])
        accuracy = np.array([value for _, value in rows])
        bits = stored_bits(space, points) / sum(space.weights)
        near = np.flatnonzero(np.abs(bits - rng.uniform(1.0, 4.0)) < 0.15)
        if not near.size:
            near = np.arange(len(rows))
        best = near[np.argsort(-accuracy[near], kind="stable")[:10]]
        point = points[int(rng.choice(best))].copy()
        changes = int(rng.integers(1, 5))
    layers = rng.choice(count, changes, replace=False)
    steps = rng.integers(1, 5, changes) * rng.choice([-1, 1], changes)
    point[layers] = np.clip(point[layers] + steps, 0, space.sizes[layers] - 1)
    return point


def stored_bits(space: SearchSpace, points: IntArray) -> FloatArray:
    """Stored bits of all layers; shape (n,)."""
    total: FloatArray = np.sum([row[points[:, i]] for i, row in enumerate(space.dimension_bits)], axis=0)
    return total


Row = tuple[int, str, IntArray, float, float]
"""Number, kind, point, accuracy, loss."""


def read_rows(path: Path, dimensions: int) -> list[Row]:
    """Rows of the CSV file by number, in whatever order they were written; a line that was cut off is dropped."""
    if not path.is_file():
        return []
    found = {}
    with open(path, newline="", encoding="utf-8") as file:
        for line in file.readlines()[1:]:
            row = line.removesuffix("\n").split(",")
            if line.endswith("\n") and len(row) == len(COLUMNS) + dimensions:
                point = np.array([int(value) for value in row[len(COLUMNS) :]])
                found[int(row[0])] = (int(row[0]), row[1], point, float(row[2]), float(row[3]))
    return [found[number] for number in sorted(found)]


def text_of(row: Row) -> str:
    """The row's line of the CSV file."""
    number, kind, point, accuracy, loss = row
    return ",".join(map(str, (number, kind, round(accuracy, 6), round(loss, 5), *point.tolist()))) + "\n"
