"""Costs of many configurations at once: per-layer tables, then gather, sum and maximum.

Equal to `hwmodel.cost.cost_of` for every configuration, which the tests check; that one is the readable reference.
What is gathered: `hwmodel.terms`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwmodel.board import Board
from hwmodel.cost import RESOURCES, dram_cycles, engine_cycles, latency, reference_energy_pj
from hwmodel.cycles import layer_cycles
from hwmodel.dataflow import Schedule
from hwmodel.energy import DRAM_PJ_PER_BIT
from hwmodel.errors import BudgetError, SpecError
from hwmodel.network import INPUT, NetworkSpec
from hwmodel.precision import LayerConfig, NetworkConfig
from hwmodel.scheduler import schedule as best_schedule
from hwmodel.storage import weight_storage
from hwmodel.terms import MERGED_ROWS, RESCALE_BITS, TERMS, Terms
from hwmodel.traffic import tensor_bits

COLUMNS = (
    *TERMS,
    "offchip_bits",
    "interval_cycles",
    "latency_cycles",
    "bits_per_weight",
    "compression",
    "fps",
    "gops",
    "fits",
    "energy_rel",
)
"""Columns of `CostTable.evaluate`."""

HIGHER_IS_BETTER = frozenset({"compression", "fps", "gops", "fits"})
"""Columns of which more is better; of the others less."""

CHUNK = 8192
"""Configurations that are scored at a time, so that intermediate results stay in the cache."""

Array = NDArray[np.int64]
Floats = NDArray[np.float64]


class CostTable:
    """Costs of configurations of one network on one board under one schedule.

    Args:
        network: The network.
        board: The board.
        choices: For every layer with weights, the configurations that it can have.
        schedule: How the network is executed; `None` takes the best schedule for the most expensive choices that
            fit the board.
        sum_bit_width: As in `NetworkConfig`.
        input_bit_width: As in `NetworkConfig`.
        output_bit_width: As in `NetworkConfig`.

    Attributes:
        layers: Names of the layers with weights: the order of the columns of `indices`.
        schedule: The schedule that the costs hold for.

    Raises:
        SpecError: Choices are missing, empty, or name unknown layers, or differ between layers that share weights; the
            schedule does not match the network.
        BudgetError: No schedule was given, and not even the cheapest choices fit.
    """

    def __init__(
        self,
        network: NetworkSpec,
        board: Board,
        choices: Mapping[str, Sequence[LayerConfig]],
        schedule: Schedule | None = None,
        *,
        sum_bit_width: int = 8,
        input_bit_width: int = 8,
        output_bit_width: int = 16,
    ) -> None:
        names = tuple(layer.name for layer in network.weighted)
        missing = [name for name in names if not choices.get(name)]
        unknown = [name for name in choices if name not in names]
        if missing or unknown:
            raise SpecError(f"choices for network {network.name!r}: missing or empty {missing}, unknown {unknown}")
        owners = {layer.name: layer.weights_of for layer in network.weighted if layer.weights_of is not None}
        for name, owner in owners.items():
            if tuple(choices[name]) != tuple(choices[owner]):
                raise SpecError(f"choices of layer {name!r}: it uses the weights of {owner!r} and needs its choices")
        self._sharing = [(names.index(name), names.index(owner)) for name, owner in owners.items()]
        self.network = network
        self.board = board
        self.layers = names
        frozen = {name: choice for name, choice in choices.items() if isinstance(choice, tuple)}
        self.choices = {name: frozen.get(name) or tuple(choices[name]) for name in names}
        self._widths = {
            "sum_bit_width": sum_bit_width,
            "input_bit_width": input_bit_width,
            "output_bit_width": output_bit_width,
        }
        self.schedule = self._default_schedule() if schedule is None else schedule
        self.schedule.check_matches(network)
        self._sizes = np.array([len(self.choices[name]) for name in names])
        self._offsets = np.concatenate([[0], np.cumsum(self._sizes)[:-1]])
        self._terms = Terms(network, board, self.schedule, self.choices, self._widths)
        cycles = {layer.name: layer_cycles(layer, self.schedule[layer.name]) for layer in network.layers}
        self._engine_cycles = engine_cycles(self.schedule, cycles)
        input_bits = tensor_bits(network, INPUT, input_bit_width, self.schedule.host)
        self._latency_cycles = latency(network, self.schedule, cycles, dram_cycles(input_bits, board))
        self._reference_energy_pj = reference_energy_pj(network)
        self._constant, self._merged = self._merge()

    def config(self, indices: Sequence[int] | Array) -> NetworkConfig:
        """The configuration that one row of indices means."""
        layers = tuple((name, self.choices[name][int(i)]) for name, i in zip(self.layers, indices, strict=True))
        return NetworkConfig(layers, **self._widths)

    def evaluate(self, indices: ArrayLike) -> dict[str, NDArray[np.generic]]:
        """Costs of configurations.

        Args:
            indices: Shape (n, layers), integers: which choice each layer takes.

        Returns:
            Arrays of shape (n,) by column: the totals of `CostReport` of the same names.  `fits` is boolean,
            `bits_per_weight`, `compression`, `fps`, `gops` and `energy_rel` are floats, the others integers.

        Raises:
            SpecError: `indices` has another shape or dtype, names a choice that a layer does not have, or differs
                between layers that share weights.
        """
        index = np.asarray(indices)
        if index.ndim != 2 or index.shape[1] != len(self.layers) or index.dtype.kind not in "iu":
            raise SpecError(
                f"indices of shape {index.shape} and dtype {index.dtype}, expected integers of shape "
                f"(n, {len(self.layers)})"
            )
        if len(index) and ((index.min(axis=0) < 0).any() or (index.max(axis=0) >= self._sizes).any()):
            row, column = np.argwhere((index < 0) | (index >= self._sizes))[0]
            raise SpecError(
                f"indices[{row}, {column}]={index[row, column]}: layer {self.layers[column]!r} has choices "
                f"0..{self._sizes[column] - 1}"
            )
        for column, owner in self._sharing:
            if (index[:, column] != index[:, owner]).any():
                raise SpecError(
                    f"indices[:, {column}] differ from indices[:, {owner}]: layer {self.layers[column]!r} uses the "
                    f"weights of {self.layers[owner]!r}"
                )
        sums, energy = self._gather(index)
        terms = self._terms
        if terms.width_rows or terms.rescaled_inputs or not self._has_shared_table:
            rows = index + self._offsets
            for tensor, table in terms.width_rows.items():
                sums += table[terms.widths(tensor, rows)]
            for column, tensor in terms.rescaled_inputs:
                wider = terms.widths(tensor, rows) > terms.act_bits[rows[:, column]]
                sums[:, :2] += np.where(wider, RESCALE_BITS, 0)[:, None]
            if not self._has_shared_table:
                self._add_shared(sums, rows)
        return self._columns(sums, energy)

    # -- tables ---------------------------------------------------------------------------------------------------

    def _default_schedule(self) -> Schedule:
        ranked = {name: self._by_size(name) for name in self.layers}
        for share in (1.0, 0.75, 0.5, 0.25):
            picked = [ranked[name][round(share * (len(ranked[name]) - 1))] for name in self.layers]
            try:
                return best_schedule(self.network, self.config(picked), self.board)
            except BudgetError:
                continue
        return best_schedule(self.network, self.config([ranked[name][0] for name in self.layers]), self.board)

    def _by_size(self, name: str) -> list[int]:
        """Choices of a layer, fewest stored bits first."""
        layer = self.network.by_name[name]
        sizes = [weight_storage(layer, config).total_bits for config in self.choices[name]]
        return sorted(range(len(sizes)), key=sizes.__getitem__)

    @property
    def _has_shared_table(self) -> bool:
        """Whether the shared engine's cost is in a merged table: few combinations, buffers of fixed size."""
        columns = self._terms.shared_columns
        return not self._terms.buffers and prod(int(size) for size in self._sizes[columns]) <= MERGED_ROWS

    def _merge(self) -> tuple[Array, list[tuple[Array, Array, Floats]]]:
        """Constant terms, and tables of layers merged as long as the product of their choices stays small.

        Returns:
            The constant, and of each table its columns, their strides, and its rows (energy is the last column).
        """
        terms = self._terms
        rows = np.column_stack([terms.rows.astype(np.float64), terms.energy_pj])
        merged: list[tuple[Array, Array, Floats]] = []
        start = 0
        while start < len(self.layers):
            stop = start + 1
            while stop < len(self.layers) and np.prod(self._sizes[start : stop + 1]) <= MERGED_ROWS:
                stop += 1
            table = np.zeros((1, rows.shape[1]))
            for layer in range(start, stop):
                own = rows[self._offsets[layer] : self._offsets[layer] + self._sizes[layer]]
                table = (table[:, None, :] + own[None, :, :]).reshape(-1, own.shape[1])
            merged.append((np.arange(start, stop), self._strides(np.arange(start, stop)), table))
            start = stop
        if terms.shared_columns.size and self._has_shared_table:
            columns = terms.shared_columns
            choices = np.indices(tuple(self._sizes[columns])).reshape(len(columns), -1).T
            index = np.zeros((len(choices), len(self.layers)), dtype=np.int64)
            index[:, columns] = choices
            costs = np.zeros((len(index), len(TERMS)), dtype=np.int64)
            self._add_shared(costs, index + self._offsets)
            table = np.column_stack([costs.astype(np.float64), np.zeros(len(costs))])
            merged.append((columns, self._strides(columns), table))
        used = np.flatnonzero(np.concatenate([table for _, _, table in merged]).any(axis=0))
        self._used = used
        return terms.constant, [(c, strides, np.ascontiguousarray(table[:, used])) for c, strides, table in merged]

    def _strides(self, columns: Array) -> Array:
        """Weights of the indices of some layers in the row number of their merged table."""
        sizes = self._sizes[columns]
        return np.concatenate([np.cumprod(sizes[1:][::-1])[::-1], [1]]).astype(np.int64)

    # -- evaluation -----------------------------------------------------------------------------------------------

    def _gather(self, index: Array) -> tuple[Array, Floats]:
        """Sums of merged tables, constants included, and energies in pJ."""
        sums = np.zeros((len(index), len(TERMS) + 1))
        for start in range(0, len(index), CHUNK):
            part = np.ascontiguousarray(index[start : start + CHUNK].T)
            total = np.zeros((part.shape[1], len(self._used)))
            row = np.empty_like(total)
            for columns, strides, table in self._merged:
                key = np.zeros(part.shape[1], dtype=np.int64)
                for column, stride in zip(columns, strides, strict=True):
                    key += part[column] * stride
                total += np.take(table, key, axis=0, out=row, mode="clip")
            sums[start : start + CHUNK, self._used] = total
        return sums[:, :-1].astype(np.int64) + self._constant, sums[:, -1]

    def _add_shared(self, sums: Array, rows: Array) -> None:
        """Adds memories and array of the shared engine to `sums`, in place."""
        terms = self._terms
        if not terms.shared_columns.size:
            return
        for start in range(0, len(rows), CHUNK):
            part, own = sums[start : start + CHUNK], rows[start : start + CHUNK]
            part += terms.of_shared_engine(terms.shared_needs(own[:, terms.shared_columns]))
            for tensors in terms.buffers:
                part += terms.of_frame_buffers(terms.buffer_bits(tensors, own))

    def _columns(self, sums: Array, energy: NDArray[np.float64]) -> dict[str, NDArray[np.generic]]:
        columns: dict[str, NDArray[np.generic]] = {name: sums[:, i] for i, name in enumerate(TERMS)}
        offchip = sums[:, 6:10].sum(axis=1)
        network, board = self.network, self.board
        dram = -(-offchip * board.clock_hz // (8 * board.dram_bytes_per_s))
        interval = np.maximum(max(1, self._engine_cycles), dram)
        columns["offchip_bits"] = offchip
        columns["interval_cycles"] = interval
        columns["latency_cycles"] = np.maximum(self._latency_cycles, dram)
        columns["bits_per_weight"] = sums[:, 0] / network.total_weights
        columns["compression"] = 32 * network.total_weights / sums[:, 0]
        columns["fps"] = board.clock_hz / interval
        columns["gops"] = 2 * network.total_macs * (board.clock_hz / interval) / 1e9
        columns["fits"] = np.all([columns[name] <= getattr(board, name) for name in RESOURCES], axis=0)
        columns["energy_rel"] = (energy + DRAM_PJ_PER_BIT * offchip) / self._reference_energy_pj
        return columns
