"""What an estimate says: one row per layer, one per memory, and the totals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hwmodel.dataflow import DataFlow
from hwmodel.errors import SpecError

VERSION = 1
"""Schema version of `CostReport.to_dict`."""


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer, per frame.

    What layers on the shared engine have in common (its array, its memories) is in the memory rows and totals of
    the report, not here: `bram18`, `uram`, `lut` and `dsp` are those of the layer's own engine.  `cycles` has
    `loading_cycles` in it, in which the engine waits for the layer's weights.
    """

    name: str
    op: str
    data_flow: str
    pe: int
    simd: int
    multiplier: str
    weight_place: str
    weight_format: str
    weight_bit_width: int
    act_bit_width: int
    density: float
    weights: int
    macs: int
    stored_bits: int
    entropy_bound_bits: int
    bram18: int
    uram: int
    lut: int
    dsp: int
    cycles: int
    offchip_weight_bits: int
    offchip_ifm_bits: int
    offchip_ofm_bits: int
    offchip_shortcut_bits: int
    loading_cycles: int = 0


@dataclass(frozen=True)
class MemoryCost:
    """One memory and what it takes."""

    owner: str
    purpose: str
    depth: int
    width: int
    bram18: int
    uram: int
    lutram_luts: int


@dataclass(frozen=True)
class CostReport:
    """Cost of a network on a board.

    Args:
        network: Name of the network.
        board: Name of the board.
        layers: One row per layer, in execution order.
        memories: One row per memory.
        total_weights: Weights of convolutions and fully connected layers.
        total_macs: Multiply-accumulates per frame.
        stored_bits: Everything that hardware stores: weights, indices, scales, biases, rescaling of additions.
        entropy_bound_bits: The same with indices at their entropy, log2 of the ways to place the kept groups.
        bram18: Block RAMs of 18 Kibit.
        uram: UltraRAMs.
        lut: Look-up tables.
        dsp: DSP slices.
        offchip_weight_bits: Weights read from off chip per frame.
        offchip_ifm_bits: Input feature maps read from off chip per frame.
        offchip_ofm_bits: Output feature maps written off chip per frame.
        offchip_shortcut_bits: Shortcut operands read from off chip per frame.
        baseline_offchip_bits: Traffic of the same network executed layer by layer: every feature map written and
            read, but those that stay in the output path of the layer before, and every weight read once.
        interval_cycles: Cycles from frame to frame when frames follow each other.
        latency_cycles: Cycles from the first pixel to the last result of a single frame.
        bottleneck: What sets the interval: a layer, the frame engine, or the DRAM.
        clock_hz: Clock of the accelerator.
        energy_rel: Energy per frame over that of the same network in 8 bits, layer by layer.
        fits: Whether every resource is within the board's.
        binding: The resource that is used most, relative to the board's.
    """

    network: str
    board: str
    layers: tuple[LayerCost, ...] = field(repr=False)
    memories: tuple[MemoryCost, ...] = field(repr=False)
    total_weights: int
    total_macs: int
    stored_bits: int
    entropy_bound_bits: int
    bram18: int
    uram: int
    lut: int
    dsp: int
    offchip_weight_bits: int
    offchip_ifm_bits: int
    offchip_ofm_bits: int
    offchip_shortcut_bits: int
    baseline_offchip_bits: int
    interval_cycles: int
    latency_cycles: int
    bottleneck: str
    clock_hz: int
    energy_rel: float
    fits: bool
    binding: str

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight of the float model."""
        return self.stored_bits / self.total_weights

    @property
    def compression(self) -> float:
        """32 bits per weight of the float model over everything stored, first and last layer included."""
        return 32 * self.total_weights / self.stored_bits

    @property
    def offchip_bits(self) -> int:
        """Bits that cross the chip's border per frame."""
        return self.offchip_weight_bits + self.offchip_ifm_bits + self.offchip_ofm_bits + self.offchip_shortcut_bits

    @property
    def loading_cycles(self) -> int:
        """Cycles per frame in which the shared engine waits for weights that are loaded whole."""
        return sum(layer.loading_cycles for layer in self.layers)

    @property
    def fps(self) -> float:
        """Frames per second when frames follow each other."""
        return self.clock_hz / self.interval_cycles

    @property
    def latency_s(self) -> float:
        """Seconds from the first pixel to the last result of a single frame."""
        return self.latency_cycles / self.clock_hz

    @property
    def gops(self) -> float:
        """Operations per second in 1e9; a multiply-accumulate is two operations, skipped zeros are counted."""
        return 2 * self.total_macs * self.fps / 1e9

    @property
    def multipliers(self) -> int:
        """Products per cycle of all arrays: one per pipelined layer, and the shared one."""
        rows = [row for row in self.layers if row.macs]
        own = sum(row.pe * row.simd for row in rows if DataFlow(row.data_flow).is_pipelined)
        return own + sum({row.pe * row.simd for row in rows if not DataFlow(row.data_flow).is_pipelined})

    @property
    def mac_efficiency(self) -> float:
        """Multiply-accumulates per frame over the products that all arrays could make in an interval.

        At most 1: engines take the cycles of all products, zeros too.
        """
        return self.total_macs / (self.interval_cycles * self.multipliers) if self.multipliers else 0.0

    @property
    def onchip_bits(self) -> int:
        """Bits of all memories on chip, before they are mapped."""
        return sum(memory.depth * memory.width for memory in self.memories)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, derived figures included; `from_dict` is the inverse."""
        derived = {name: getattr(self, name) for name in DERIVED}
        return {"version": VERSION, **asdict(self), **derived}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CostReport:
        """Inverse of `to_dict`.

        Raises:
            SpecError: The version is another one, or a field is unknown or missing.
        """
        if not isinstance(data, Mapping):
            raise SpecError(f"a cost report is {type(data).__name__}, expected fields with values")
        values = dict(data)
        version = values.pop("version", None)
        if version != VERSION:
            raise SpecError(f"version={version!r} of a cost report, expected {VERSION}")
        for name in DERIVED:
            values.pop(name, None)
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise SpecError(f"cost report: unknown fields {sorted(unknown)}")
        try:
            values["layers"] = tuple(LayerCost(**row) for row in values["layers"])
            values["memories"] = tuple(MemoryCost(**row) for row in values["memories"])
            return cls(**values)
        except (TypeError, KeyError) as error:
            raise SpecError(f"cost report: {error}") from error


DERIVED = (
    "bits_per_weight",
    "compression",
    "offchip_bits",
    "loading_cycles",
    "fps",
    "latency_s",
    "gops",
    "multipliers",
    "mac_efficiency",
    "onchip_bits",
)
"""Properties of `CostReport` that its plain form states too."""
