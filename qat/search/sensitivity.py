"""How much each layer's loss grows at each of its choices, and the budgeted allocations that follow from it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from hwmodel.precision import LayerConfig, NetworkConfig
from qat.errors import SearchError
from qat.search.noise import activation_noise, at_least_as_precise
from qat.search.space import SearchSpace
from qat.search.trial import FloatArray, IntArray

logger = logging.getLogger(__name__)

MEASURED_DENSITIES = 8
"""Of one format, bit width and granularity at most so many densities are measured; between them losses are
interpolated, linearly in the logarithm of the density."""

Progress = Callable[[int, int], None]
"""Called with (measurements done, measurements in all)."""


@dataclass(frozen=True)
class SensitivityProfile:
    """Loss increase of each dimension at each choice, the others at the base configuration.

    Args:
        dimensions: As in `SearchSpace.dimensions`.
        loss_increase: Per dimension and choice, >= 0, in units of the measured loss.
        source: `measured`, or `gaussian` for the assumption of `gaussian_profile`.

    Raises:
        SearchError: Lengths differ, or a value is negative or not finite.
    """

    dimensions: tuple[str, ...]
    loss_increase: tuple[tuple[float, ...], ...]
    source: str = "measured"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dimensions", tuple(self.dimensions))
        object.__setattr__(self, "loss_increase", tuple(tuple(map(float, row)) for row in self.loss_increase))
        if len(self.dimensions) != len(self.loss_increase):
            raise SearchError(f"sensitivity profile: {len(self.dimensions)} dimensions, {len(self.loss_increase)} rows")
        for name, row in zip(self.dimensions, self.loss_increase, strict=True):
            if not row or not all(np.isfinite(value) and value >= 0 for value in row):
                raise SearchError(f"sensitivity profile: {name!r} has {row}, expected finite values >= 0")

    def check_matches(self, space: SearchSpace) -> None:
        """Raises `SearchError` unless the profile speaks of exactly this space's dimensions and choices."""
        sizes = [len(row) for row in self.loss_increase]
        if self.dimensions != space.dimensions or sizes != space.sizes.tolist():
            raise SearchError(
                f"the sensitivity profile is of another search space: dimensions {list(self.dimensions)} with {sizes} "
                f"choices, expected {list(space.dimensions)} with {space.sizes.tolist()}; measure it again"
            )

    @cached_property
    def table(self) -> tuple[FloatArray, ...]:
        """Loss increases as arrays, one per dimension."""
        return tuple(np.array(row) for row in self.loss_increase)

    def predicted(self, points: IntArray) -> FloatArray:
        """Sum of the dimensions' loss increases; shape (n,) from points of shape (n, dimensions)."""
        total: FloatArray = self.terms(points).sum(axis=1)
        return total

    def terms(self, points: IntArray) -> FloatArray:
        """Loss increase of each dimension; shape (n, dimensions)."""
        return np.stack([row[points[:, i]] for i, row in enumerate(self.table)], axis=1)

    def reweighted(self, factors: FloatArray) -> SensitivityProfile:
        """The profile with each dimension's loss increases times a factor >= 0."""
        rows = tuple(tuple(row * factor) for row, factor in zip(self.table, factors, strict=True))
        return SensitivityProfile(self.dimensions, rows, self.source)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` is the inverse."""
        rows = [list(row) for row in self.loss_increase]
        return {"dimensions": list(self.dimensions), "loss_increase": rows, "source": self.source}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SensitivityProfile:
        """Inverse of `to_dict`.

        Raises:
            SearchError: A field is unknown, missing or invalid.
        """
        try:
            return cls(**data)
        except (TypeError, ValueError) as error:
            raise SearchError(f"sensitivity profile: {error}") from error


def gaussian_profile(space: SearchSpace) -> SensitivityProfile:
    """What is assumed without a measurement: every dimension counts alike, by the noise of Gaussian weights and codes.

    Of activations counts what is lost against the widest choice.
    """
    rows = tuple(
        tuple(
            weights + activation_noise(choice.act_bit_width) - activation_noise(widths[-1])
            for weights, choice in zip(noise, choices, strict=True)
        )
        for noise, choices, widths in zip(
            space.dimension_noise, space.dimension_choices, space.act_bit_widths, strict=True
        )
    )
    return SensitivityProfile(space.dimensions, rows, "gaussian")


def measure(
    loss_of: Callable[[NetworkConfig], float],
    space: SearchSpace,
    base: NetworkConfig,
    on_progress: Progress | None = None,
) -> SensitivityProfile:
    """Measures the profile, one dimension at a time.

    Of many densities some are measured (`MEASURED_DENSITIES`).

    Where a dimension chooses among widths of activations too, weights and activations are measured one by one, and
    the increases added.

    Args:
        loss_of: Loss of a configuration, such as the cross-entropy on calibration data.
        space: What to measure.
        base: The configuration of the other layers, such as 8 bits everywhere; need not be in the space.  Activations
            as wide as the widest choice.
        on_progress: Called after each measurement.

    Returns:
        The profile, cleaned by `monotone`; a loss that is not finite counts as the largest one measured.

    Raises:
        SearchError: The loss of the base configuration, or every other loss, is not finite.
    """
    plans = [_measurements(space, base, dimension) for dimension in range(len(space.sizes))]
    total = 1 + sum(len(weights) + len(acts) for weights, acts in plans)
    base_loss = float(loss_of(base))
    if not np.isfinite(base_loss):
        raise SearchError(f"sensitivity: the loss of the base configuration is {base_loss}, expected a finite number")
    done = 1
    if on_progress:
        on_progress(done, total)

    def increase(changed: Mapping[str, LayerConfig]) -> float:
        nonlocal done
        layers = tuple((name, changed.get(name, layer)) for name, layer in base.layers)
        config = NetworkConfig(layers, base.sum_bit_width, base.input_bit_width, base.output_bit_width)
        loss = base_loss if config == base else float(loss_of(config))
        done += 1
        if on_progress:
            on_progress(done, total)
        return loss - base_loss

    measured: list[FloatArray] = []
    for choices, (weights, acts) in zip(space.dimension_choices, plans, strict=True):
        of_weights = _all_densities({key: increase(changed) for key, changed in weights.items()}, choices)
        of_acts = {width: increase(changed) for width, changed in acts.items()}
        measured.append(np.array([of_weights[_weights(c)] + of_acts.get(c.act_bit_width, 0.0) for c in choices]))
    finite = np.concatenate([row[np.isfinite(row)] for row in measured])
    if not finite.size:
        raise SearchError(
            "sensitivity: every measured loss is NaN or infinite; check the loss and the calibration data"
        )
    lost = sum(int((~np.isfinite(row)).sum()) for row in measured)
    if lost:
        logger.warning("sensitivity: %d of %d losses are not finite and count as the largest one", lost, total)
    rows = [np.where(np.isfinite(row), row, finite.max()) for row in measured]
    cleaned = [monotone(row, choices) for row, choices in zip(rows, space.dimension_choices, strict=True)]
    return SensitivityProfile(space.dimensions, tuple(tuple(row) for row in cleaned))


def _families(choices: Iterable[LayerConfig]) -> list[list[LayerConfig]]:
    """Weights that differ in density only, sparsest first."""
    found: dict[tuple[object, ...], set[LayerConfig]] = {}
    for choice in map(_weights, choices):
        key = (choice.weight_format, choice.weight_bit_width, choice.granularity)
        found.setdefault(key, set()).add(choice)
    return [sorted(family, key=lambda choice: choice.density) for family in found.values()]


def _measured(choices: Iterable[LayerConfig]) -> set[LayerConfig]:
    """Of each family all, or if there are many the ends and some between."""
    kept: set[LayerConfig] = set()
    for family in _families(choices):
        count = min(len(family), MEASURED_DENSITIES)
        kept |= {family[round(i)] for i in np.linspace(0, len(family) - 1, count)}
    return kept


def _all_densities(increases: Mapping[LayerConfig, float], choices: Iterable[LayerConfig]) -> dict[LayerConfig, float]:
    """Loss increases of all choices of weights, interpolated between the measured ones."""
    found = dict(increases)
    for family in _families(choices):
        known = [choice for choice in family if choice in increases]
        for choice in family:
            if choice not in increases:
                at = [math.log(each.density) for each in known]
                found[choice] = float(np.interp(math.log(choice.density), at, [increases[each] for each in known]))
    return found


def _weights(choice: LayerConfig) -> LayerConfig:
    """The choice whatever it reads."""
    return replace(choice, act_bit_width=8)


Changes = Mapping[str, LayerConfig]
"""Layers that differ from the base."""


def _measurements(
    space: SearchSpace, base: NetworkConfig, dimension: int
) -> tuple[Mapping[LayerConfig, Changes], Mapping[int, Changes]]:
    """What is measured of a dimension: each choice of weights with the widest codes, each narrower width by itself."""
    columns, widths = space.groups[dimension], space.act_bit_widths[dimension]
    measured = _measured(space.dimension_choices[dimension])
    weights: dict[LayerConfig, Changes] = {}
    acts: dict[int, Changes] = {}
    for i, lead in enumerate(space.dimension_choices[dimension]):
        own = {space.layers[column]: space.choices[column][i] for column in columns}
        if lead.act_bit_width == widths[-1]:
            if _weights(lead) in measured:
                weights[_weights(lead)] = own
        elif lead.act_bit_width not in acts:
            acts[lead.act_bit_width] = {
                name: replace(base[name], act_bit_width=choice.act_bit_width) for name, choice in own.items()
            }
    return weights, acts


def monotone(loss_increase: FloatArray, choices: Sequence[LayerConfig]) -> FloatArray:
    """Removes noise: a choice at least as precise as another must not lose more.

    The mean of the smallest monotone function above the values and the largest one below them.

    Args:
        loss_increase: Shape (choices,), any sign.
        choices: The layer's configurations.

    Returns:
        Shape (choices,), >= 0, monotone in `qat.search.noise.at_least_as_precise`.
    """
    values = np.maximum(loss_increase, 0.0)
    better = np.array([[at_least_as_precise(a, b) for b in choices] for a in choices])  # [a, b]: a not worse than b
    above = np.where(better, values[:, None], -np.inf).max(axis=0)  # worst of all that are at least as precise
    below = np.where(better.T, values[:, None], np.inf).min(axis=0)  # best of all that are at most as precise
    middle: FloatArray = (above + below) / 2
    return middle


def lagrange_path(profile: SensitivityProfile, stored_bits: Sequence[FloatArray]) -> IntArray:
    """Allocations that minimise predicted loss + lambda * stored bits, for every lambda from infinity to 0.

    Per dimension only the lower convex hull of (stored bits, loss increase) matters; its edges, steepest first,
    are the steps of the path.

    Args:
        profile: Loss increases.
        stored_bits: Per dimension the bits of each choice (`SearchSpace.dimension_bits`).

    Returns:
        Points of shape (steps + 1, dimensions), from the cheapest to the most precise.

    Source:
        Shoham and Gersho, Efficient bit allocation for an arbitrary set of quantizers, IEEE Trans. ASSP 36(9), 1988.
    """
    hulls = [_lower_hull(bits, loss) for bits, loss in zip(stored_bits, profile.table, strict=True)]
    steps = []
    for dimension, hull in enumerate(hulls):
        bits, loss = stored_bits[dimension], profile.table[dimension]
        for order, (start, end) in enumerate(pairwise(hull)):
            slope = (loss[start] - loss[end]) / (bits[end] - bits[start])
            steps.append((-slope, dimension, order, end))
    path = [np.array([hull[0] for hull in hulls], dtype=np.int64)]
    for _, dimension, _, end in sorted(steps):
        point = path[-1].copy()
        point[dimension] = end
        path.append(point)
    return np.stack(path)


def _lower_hull(bits: FloatArray, loss: FloatArray) -> list[int]:
    """Indices of the lower convex hull, cheapest first, strictly falling in loss."""
    hull: list[int] = []
    for i in sorted(range(len(bits)), key=lambda i: (bits[i], loss[i])):
        if hull and loss[i] >= loss[hull[-1]]:
            continue  # costs no less and loses no less
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (loss[a] - loss[b]) * (bits[i] - bits[a]) > (loss[a] - loss[i]) * (bits[b] - bits[a]):
                break
            hull.pop()
        hull.append(i)
    return hull
