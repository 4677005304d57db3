"""What flows through a search: targets, fidelities and trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite, isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.precision import NetworkConfig
from qat.errors import ConfigError, SearchError

ACCURACY = "accuracy"
"""The metric that every evaluator returns, 0..1; the only quantity that a surrogate models."""

SCREENING_ACCURACY = "screening_accuracy"
"""The metric of a trial that is screened: accuracy on the way, 0..1."""

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

CostColumns = Mapping[str, NDArray[Any]]
"""Exact costs by column name, each of shape (n,)."""

CostFunction = Callable[[IntArray], CostColumns]
"""Layer indices of shape (n, layers) -> cost columns; `hwmodel.table.CostTable.evaluate` is one."""


@dataclass(frozen=True)
class Fidelity:
    """How much a trial spends on one configuration.

    Args:
        name: What reports call it.
        epochs: Training epochs, >= 0; 0 is quantization without training.
        data_fraction: Share of the training data used, in (0, 1].

    Raises:
        ConfigError: A field is out of range.
    """

    name: str
    epochs: float
    data_fraction: float = 1.0

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("fidelity.name is empty, expected a word for reports")
        if not (isfinite(self.epochs) and self.epochs >= 0):
            raise ConfigError(f"fidelity.epochs={self.epochs!r}, expected a number >= 0")
        if not (isfinite(self.data_fraction) and 0 < self.data_fraction <= 1):
            raise ConfigError(f"fidelity.data_fraction={self.data_fraction!r}, expected a share in (0, 1]")
        object.__setattr__(self, "epochs", float(self.epochs))
        object.__setattr__(self, "data_fraction", float(self.data_fraction))

    @property
    def effort(self) -> float:
        """Passes over the whole training data; orders fidelities."""
        return self.epochs * self.data_fraction

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"name": self.name, "epochs": self.epochs, "data_fraction": self.data_fraction}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Fidelity:
        """Inverse of `to_dict`."""
        return cls(**data)


@dataclass(frozen=True)
class Screening:
    """A look at a trial's accuracy on the way, to end it early if it is bad.

    Args:
        share: Of the training after which accuracy is measured, in [0, 1); 0 measures before training.
        least: A trial that is less accurate there is stopped, 0..1; 0 stops none.

    Raises:
        ConfigError: A field is out of range.
    """

    share: float
    least: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ConfigError(f"screening.share={self.share!r}, expected a share in [0, 1)")
        if not 0 <= self.least <= 1:
            raise ConfigError(f"screening.least={self.least!r}, expected an accuracy in [0, 1]")

    def to_dict(self) -> dict[str, float]:
        """Plain values for JSON."""
        return {"share": self.share, "least": self.least}

    @classmethod
    def from_dict(cls, data: Mapping[str, float]) -> Screening:
        """Inverse of `to_dict`."""
        return cls(**data)


Evaluator = Callable[..., Mapping[str, float]]
"""(configuration, fidelity, seed) -> metrics with at least `"accuracy"`, 0..1.

A search that screens trials gives a `Screening` as a fourth argument.  The metrics then also have
`"screening_accuracy"`; where this is below `least` the evaluation ends there, without `"accuracy"`.
"""


@dataclass(frozen=True)
class Target:
    """A hardware budget to search under: bounds on cost columns.

    Args:
        name: What tables call it.
        bounds: By cost column the lowest and the highest allowed value, both inclusive; `None` leaves a side open.

    Raises:
        ConfigError: No bounds, or a bound is empty, not a number, or the wrong way round.
    """

    name: str
    bounds: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("target.name is empty, expected a word for tables")
        bounds: dict[str, tuple[float | None, float | None]] = {}
        for column, pair in self.bounds.items():
            try:
                low, high = (None if value is None else float(value) for value in pair)
            except (TypeError, ValueError):
                raise ConfigError(
                    f"target {self.name!r}: bounds[{column!r}]={pair!r}, expected (low, high), None for an open side"
                ) from None
            if (low is None and high is None) or any(v is not None and isnan(v) for v in (low, high)):
                raise ConfigError(f"target {self.name!r}: bounds[{column!r}]={pair!r} bounds nothing")
            if low is not None and high is not None and low > high:
                raise ConfigError(f"target {self.name!r}: bounds[{column!r}]={pair!r}, expected low <= high")
            bounds[column] = (low, high)
        if not bounds:
            raise ConfigError(
                f"target {self.name!r} has no bounds, expected at least one, as in compression: [20, null]"
            )
        object.__setattr__(self, "bounds", bounds)

    def violations(self, columns: CostColumns) -> dict[str, FloatArray]:
        """By column, how far each configuration is outside, relative to the bound; 0 inside, inf for NaN costs.

        Raises:
            SearchError: The cost function has no such column.
        """
        found: dict[str, FloatArray] = {}
        for column, (low, high) in self.bounds.items():
            if column not in columns:
                raise SearchError(
                    f"target {self.name!r} bounds {column!r}, which is no cost column; there are {sorted(columns)}"
                )
            values = np.asarray(columns[column], dtype=np.float64)
            outside = np.zeros(values.shape)
            if low is not None:
                outside = np.maximum(outside, (low - values) / (abs(low) or 1.0))
            if high is not None:
                outside = np.maximum(outside, (values - high) / (abs(high) or 1.0))
            found[column] = np.where(np.isnan(values), np.inf, outside)
        return found

    def feasible(self, columns: CostColumns) -> BoolArray:
        """Which configurations are inside every bound; shape (n,)."""
        inside: BoolArray = np.all([outside <= 0 for outside in self.violations(columns).values()], axis=0)
        return inside

    def admits(self, cost: Mapping[str, float]) -> bool:
        """Whether one configuration with these costs is inside every bound."""
        return bool(self.feasible({name: np.array([value]) for name, value in cost.items()})[0])

    def compares(self, cost: Mapping[str, float], other: Mapping[str, float]) -> bool:
        """Whether a configuration with these costs has to be as accurate as another one inside the bounds."""
        return True

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"name": self.name, "bounds": {column: list(pair) for column, pair in self.bounds.items()}}


class TrialState(StrEnum):
    """Where a trial stands."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    STOPPED = "stopped"  # early, by its screening
    FAILED = "failed"


@dataclass(frozen=True)
class Trial:
    """One evaluation of one configuration.

    Args:
        id: 1, 2, ...; unique in a store.
        point: Choice of each dimension of the search space.
        config: The configuration that the point means.
        fidelity: How much was spent.
        seed: Of the evaluation.
        target: Name of the target that it was proposed for.
        origin: How it was proposed: `lagrange`, `uniform`, `perturbed`, `acquisition`, `random`, `promoted`,
            `earlier`.
        state: Where it stands.
        cost: Exact cost columns.
        metrics: What the evaluator returned; empty unless completed, the screening's accuracy alone if stopped.
        predicted: Accuracy that the surrogate expected, and its standard deviation, when it was proposed.
        created_s: When it was recorded, seconds since the epoch, UTC.
        started_s: When its last attempt started.
        ended_s: When it ended.
        attempts: How often it was started.
        error: Why it failed.
        screening: When it was looked at on the way, and what it had to reach; `None` if it was not.
    """

    id: int
    point: tuple[int, ...]
    config: NetworkConfig
    fidelity: Fidelity
    seed: int
    target: str
    origin: str
    state: TrialState
    cost: Mapping[str, float]
    metrics: Mapping[str, float] = field(default_factory=dict)
    predicted: tuple[float, float] | None = None
    created_s: float = 0.0
    started_s: float | None = None
    ended_s: float | None = None
    attempts: int = 0
    error: str | None = None
    screening: Screening | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will become of it."""
        return self.state in (TrialState.COMPLETED, TrialState.STOPPED, TrialState.FAILED)

    @property
    def is_completed(self) -> bool:
        """Whether it was evaluated in full."""
        return self.state is TrialState.COMPLETED

    @property
    def accuracy(self) -> float:
        """Observed accuracy, 0..1; NaN unless completed."""
        return self.metrics.get(ACCURACY, float("nan"))

    @property
    def screening_accuracy(self) -> float:
        """Accuracy observed on the way, 0..1; NaN unless it was screened and ended."""
        return self.metrics.get(SCREENING_ACCURACY, float("nan"))

    @property
    def effort(self) -> float:
        """Passes over the training data that it took; those of its fidelity unless it was stopped."""
        is_short = self.state is TrialState.STOPPED and self.screening is not None
        return self.fidelity.effort * (self.screening.share if is_short and self.screening else 1.0)

    @property
    def choices(self) -> dict[str, int | float | str]:
        """Precision of each layer, flat: `<layer>.weight_bit_width` and other fields of `LayerConfig`.

        `act_bit_width` is what the layer reads.
        """
        flat: dict[str, int | float | str] = {}
        for name, layer in self.config.layers:
            flat[f"{name}.weight_bit_width"] = layer.weight_bit_width
            flat[f"{name}.weight_format"] = str(layer.weight_format)
            flat[f"{name}.sparsity"] = layer.sparsity
            flat[f"{name}.granularity"] = str(layer.granularity)
            flat[f"{name}.act_bit_width"] = layer.act_bit_width
        return flat

    @property
    def duration_s(self) -> float | None:
        """Seconds of the last attempt; `None` while it has not ended."""
        if self.started_s is None or self.ended_s is None:
            return None
        return self.ended_s - self.started_s
