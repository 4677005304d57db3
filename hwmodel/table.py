"""Costs of many configurations at once: per-layer tables, then gather, sum and maximum.

Equal to `hwmodel.cost.cost_of` for every configuration, which the tests check; that one is the readable reference.
What is gathered: `hwmodel.terms`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hwmodel.arrays import by_kind
from hwmodel.board import Board
from hwmodel.dataflow import Schedule
from hwmodel.errors import BudgetError, SpecError, require_type
from hwmodel.network import NetworkSpec
from hwmodel.precision import LayerConfig, NetworkConfig
from hwmodel.scheduler import schedule as best_schedule
from hwmodel.storage import weight_storage
from hwmodel.terms import NEEDS, TERMS, LayerTerms, Terms, join_needs

MERGED_ROWS = 1024
"""Rows up to which tables of layers are merged into one."""

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
        min_fps: Frames per second of the schedule where none was given.

    Attributes:
        layers: Names of the layers with weights: the order of the columns of `indices`.
        schedule: The schedule that the costs hold for.

    Raises:
        SpecError: Choices are missing, empty, or name unknown layers, or differ between layers that share weights; the
            schedule does not match the network.
        BudgetError: No schedule was given, and not even the cheapest choices fit, or are fast enough.
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
        min_fps: float = 0.0,
    ) -> None:
        require_type("network", network, NetworkSpec, "load_network reads one")
        require_type("board", board, Board, "load_board reads one")
        require_type("choices", choices, Mapping, "configurations by layer name")
        names = tuple(layer.name for layer in network.weighted)
        missing = [name for name in names if not choices.get(name)]
        unknown = [name for name in choices if name not in names]
        if missing or unknown:
            raise SpecError(f"choices for network {network.name!r}: missing or empty {missing}, unknown {unknown}")
        for name, own in choices.items():
            if not isinstance(own, Sequence) or not all(isinstance(config, LayerConfig) for config in own):
                raise SpecError(f"choices of layer {name!r}: {own!r}, expected a list of LayerConfigs")
        if schedule is not None:
            require_type("schedule", schedule, Schedule, "schedule() makes one")
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
        network.require_weights()
        self._sizes = np.array([len(self.choices[name]) for name in names])
        self.schedule = self._default_schedule(min_fps) if schedule is None else schedule
        self.schedule.check_matches(network)
        self._offsets = np.concatenate([[0], np.cumsum(self._sizes)[:-1]])
        act_bits = {name: [config.act_bit_width for config in self.choices[name]] for name in names}
        self._act_bits = np.concatenate(list(act_bits.values()))
        read = {name: set(bits) for name, bits in act_bits.items()}
        self._terms = Terms(network, board, self.schedule, read, self._widths)
        found = [self._terms.of_layer(network.by_name[name], by_kind(self.choices[name])) for name in names]
        self._needs = self._merge_needs(
            [found[column].needs[found[column].row_of] for column in self._terms.shared_columns]
        )
        self._merged = self._merge(found)

    def config(self, indices: Sequence[int] | Array) -> NetworkConfig:
        """The configuration that one row of indices means.

        Raises:
            SpecError: As for `evaluate`.
        """
        (indices,) = self._checked([list(indices)] if isinstance(indices, Sequence) else np.asarray(indices)[None])
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
        index = self._checked(indices)
        sums, energy = self._gather(index)
        terms = self._terms
        if terms.depends_on_widths or not self._has_shared_table:
            act_bits = self._read_bits(index)
            terms.add_tensors(sums, act_bits)
            if not self._has_shared_table:
                self._add_shared(sums, index, act_bits)
        return terms.columns(sums, energy)

    def _checked(self, indices: ArrayLike) -> Array:
        """Indices as an array of shape (n, layers), each a choice of its layer."""
        try:
            index = np.asarray(indices)
        except ValueError:
            raise SpecError(f"indices={indices!r}, expected integers of shape (n, {len(self.layers)})") from None
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
        return index.astype(np.int64)

    # -- tables ---------------------------------------------------------------------------------------------------

    def at_share(self, share: float) -> list[int]:
        """The choice of each layer at a share of the way from the fewest to the most stored bits, in 0..1."""
        number: object = share
        if not (isinstance(number, int | float) and 0 <= number <= 1):
            raise SpecError(f"share={share!r}, expected a number in 0..1")
        picked = []
        for name in self.layers:
            sizes = [weight_storage(self.network.by_name[name], config).total_bits for config in self.choices[name]]
            ranked = sorted(range(len(sizes)), key=sizes.__getitem__)
            picked.append(ranked[round(share * (len(ranked) - 1))])
        return picked

    def _default_schedule(self, min_fps: float) -> Schedule:
        for share in (1.0, 0.75, 0.5, 0.25):
            try:
                return best_schedule(self.network, self.config(self.at_share(share)), self.board, min_fps)
            except BudgetError:
                continue
        return best_schedule(self.network, self.config(self.at_share(0.0)), self.board, min_fps)

    @property
    def _has_shared_table(self) -> bool:
        """Whether the shared engine's cost is in a merged table: few combinations, buffers of fixed size."""
        columns = self._terms.shared_columns
        return not self._terms.buffers and prod(int(size) for size in self._sizes[columns]) <= MERGED_ROWS

    def _merge(self, found: Sequence[LayerTerms]) -> list[tuple[Array, Array, Floats]]:
        """Tables of layers merged as long as the product of their choices stays small.

        Args:
            found: What each choice adds, of each layer.

        Returns:
            Of each table its columns, their strides, and its rows (energy is the last column).
        """
        terms = self._terms
        merged: list[tuple[Array, Array, Floats]] = []
        start = 0
        while start < len(self.layers):
            stop = start + 1
            while stop < len(self.layers) and np.prod(self._sizes[start : stop + 1]) <= MERGED_ROWS:
                stop += 1
            table = np.zeros((1, len(TERMS) + 1))
            for one in found[start:stop]:
                own = np.column_stack([one.rows.astype(np.float64), one.energy_pj])[one.row_of]
                table = (table[:, None, :] + own[None, :, :]).reshape(-1, own.shape[1])
            merged.append((np.arange(start, stop), self._strides(np.arange(start, stop)), table))
            start = stop
        if terms.shared_columns.size and self._has_shared_table:
            columns = terms.shared_columns
            choices = np.indices(tuple(self._sizes[columns])).reshape(len(columns), -1).T
            index = np.zeros((len(choices), len(self.layers)), dtype=np.int64)
            index[:, columns] = choices
            costs = np.zeros((len(index), len(TERMS)), dtype=np.int64)
            self._add_shared(costs, index, self._read_bits(index))
            table = np.column_stack([costs.astype(np.float64), np.zeros(len(costs))])
            merged.append((columns, self._strides(columns), table))
        used = np.flatnonzero(np.concatenate([table for _, _, table in merged]).any(axis=0))
        self._used = used
        return [(c, strides, np.ascontiguousarray(table[:, used])) for c, strides, table in merged]

    def _merge_needs(self, needs: Sequence[Array]) -> list[tuple[Array, Array, Array]]:
        """What the shared layers ask for, some layers together: one row of a table for each combination of choices.

        Args:
            needs: Shape (choices, `NEEDS`), of each of the shared layers.

        Returns:
            Of each table the columns of its layers, their strides, and its rows.
        """
        merged: list[tuple[Array, Array, Array]] = []
        start = 0
        while start < len(needs):
            stop = start + 1
            while stop < len(needs) and prod(len(own) for own in needs[start : stop + 1]) <= MERGED_ROWS:
                stop += 1
            table = np.zeros((1, len(NEEDS)), dtype=np.int64)
            for own in needs[start:stop]:
                together = np.repeat(table[:, None], len(own), axis=1)
                join_needs(together, own)
                table = together.reshape(-1, len(NEEDS))
            columns = self._terms.shared_columns[start:stop]
            merged.append((columns, self._strides(columns), table))
            start = stop
        return merged

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
                total += np.take(table, _keys(part, columns, strides), axis=0, out=row, mode="clip")
            sums[start : start + CHUNK, self._used] = total
        return sums[:, :-1].astype(np.int64) + self._terms.constant, sums[:, -1]

    def _read_bits(self, index: Array) -> Array:
        """Bits that each layer reads, shape (n, layers); no columns if no tensor's width depends on them."""
        if not self._terms.depends_on_widths:
            return np.empty((len(index), 0), dtype=np.int64)
        bits: Array = self._act_bits[index + self._offsets]
        return bits

    def _add_shared(self, sums: Array, index: Array, act_bits: Array) -> None:
        """Adds memories and array of the shared engine to `sums`, in place."""
        if not self._terms.has_shared_engine:
            return
        for start in range(0, len(index), CHUNK):
            part = slice(start, start + CHUNK)
            self._terms.add_shared_engine(sums[part], self._shared_needs(index[part]), act_bits[part])

    def _shared_needs(self, index: Array) -> Array:
        """What the shared layers ask for together."""
        needs: Array = np.zeros((len(index), len(NEEDS)), dtype=np.int64)
        by_column, found = np.ascontiguousarray(index.T), np.empty_like(needs)
        for columns, strides, table in self._needs:
            np.take(table, _keys(by_column, columns, strides), axis=0, out=found, mode="clip")
            join_needs(needs, found)
        return needs


def _keys(by_column: Array, columns: Array, strides: Array) -> Array:
    """Rows of a merged table, shape (n,), from indices of all layers, shape (layers, n)."""
    keys = np.zeros(by_column.shape[1], dtype=np.int64)
    for column, stride in zip(columns, strides, strict=True):
        keys += by_column[column] * stride
    return keys
