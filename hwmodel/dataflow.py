"""How layers are executed on chip: data flow, folding, where weights lie.  The types of a schedule.

| data flow   | runs on            | order of the loops                  | ifm on chip | between layers |
|-------------|--------------------|-------------------------------------|-------------|----------------|
| `row_pixel` | an engine per layer| row, pixel, output block, reduction | line buffer | chained on chip|
| `row_pass`  | an engine per layer| row, output block, reduction, pixel | line buffer | chained on chip|
| `frame`     | the shared engine  | output block, reduction, row, pixel | whole frame | frame buffers  |
| `spilled`   | the shared engine  | row, output block, reduction, pixel | line buffer | off chip       |

The shared engine has its weights in one of three ways: resident between frames; streamed, a block at a time, whenever
the loops come to it, which for `spilled` is once per row; or, `spilled` only, loaded whole before the layer starts and
kept until its last row is done.  All layers that are loaded use one buffer, in turn, so the engine waits while the next
one's weights come, at the DRAM's peak bandwidth.  A second buffer would save that time, at most that of reading these
weights once, and cost the memory of as many resident weights; the fewest off-chip bits are what a schedule is for.

Layers with an engine of their own form a pipeline over the first part of the network; the shared engine executes
the rest, layer by layer, while the pipeline works on the next frame.

Source:
    `row_pass` and `frame`: Nguyen et al., IEEE TVLSI 27(8), 2019, line-based weight reuse and full weight reuse;
    `spilled` and `frame`: ShortcutFusion, arXiv 2106.08167, table I.  `row_pixel` is the usual streaming engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Protocol

from hwmodel.compute import Count, Multiplier
from hwmodel.errors import SpecError
from hwmodel.names import Names
from hwmodel.network import LayerSpec, NetworkSpec, is_size

VERSION = 1
"""Schema version of `Schedule.to_dict`."""

MOST_PARALLEL = 2**20
"""Largest `pe`, `simd` and `ingest_channels`: resources of whole networks stay within 64 bits."""


class DataFlow(Names):
    """How one layer is executed (table in the module's docstring)."""

    ROW_PIXEL = "row_pixel"
    ROW_PASS = "row_pass"
    FRAME = "frame"
    SPILLED = "spilled"

    @property
    def is_pipelined(self) -> bool:
        """Whether the layer has an engine of its own."""
        return self in (DataFlow.ROW_PIXEL, DataFlow.ROW_PASS)


class WeightPlace(Names):
    """Where the weights of a layer lie: between frames, or for as long as it is computed."""

    NONE = "none"  # a layer without weights
    BRAM = "bram"
    URAM = "uram"
    STREAMED = "streamed"  # off chip; a block at a time passes through a double buffer
    LOADED_BRAM = "loaded_bram"  # off chip; all of them are in block RAM while a `spilled` layer is computed
    LOADED_URAM = "loaded_uram"  # the same in UltraRAM

    @property
    def is_resident(self) -> bool:
        """Whether weights stay on chip from frame to frame."""
        return self in (WeightPlace.BRAM, WeightPlace.URAM)

    @property
    def is_loaded(self) -> bool:
        """Whether weights are loaded whole at the start of a layer."""
        return self in (WeightPlace.LOADED_BRAM, WeightPlace.LOADED_URAM)

    @property
    def loaded(self) -> WeightPlace:
        """The place in the same kind of memory for weights that are loaded."""
        return WeightPlace.LOADED_URAM if self.memory is WeightPlace.URAM else WeightPlace.LOADED_BRAM

    @property
    def memory(self) -> WeightPlace:
        """The kind of memory, `BRAM` or `URAM`; buffers of streamed weights lie in block RAM."""
        in_uram = self in (WeightPlace.URAM, WeightPlace.LOADED_URAM)
        return WeightPlace.URAM if in_uram else WeightPlace.BRAM


class Execution(Protocol):
    """Execution of one layer, or of a grid of foldings of it: `pe`, `simd`, `ingest_channels` may be arrays."""

    @property
    def data_flow(self) -> DataFlow:
        """How the layer is executed."""
        ...

    @property
    def pe(self) -> Count:
        """Output channels in parallel."""
        ...

    @property
    def simd(self) -> Count:
        """Products per output channel in parallel."""
        ...

    @property
    def ingest_channels(self) -> Count:
        """Channels of a pixel that enter the line buffer per cycle."""
        ...

    @property
    def multiplier(self) -> Multiplier:
        """What multiplies."""
        ...

    @property
    def weight_place(self) -> WeightPlace:
        """Where the weights lie."""
        ...


@dataclass(frozen=True)
class LayerSchedule:
    """Execution of one layer.

    Args:
        name: Name of the layer in the `NetworkSpec`.
        data_flow: How it is executed.
        pe: Output channels in parallel, >= 1; the shared engine's for `frame` and `spilled`.
        simd: Products per output channel in parallel, >= 1; channels in parallel for layers without weights.
        ingest_channels: Channels of a pixel that enter the line buffer per cycle, >= 1.
        multiplier: What multiplies.
        weight_place: Where the weights lie.

    Raises:
        SpecError: A field is out of range, or weights are loaded for another data flow than `spilled`.
    """

    name: str
    data_flow: DataFlow
    pe: int
    simd: int
    ingest_channels: int = 1
    multiplier: Multiplier = Multiplier.LUT
    weight_place: WeightPlace = WeightPlace.NONE

    def __post_init__(self) -> None:
        for name, kind in (("data_flow", DataFlow), ("multiplier", Multiplier), ("weight_place", WeightPlace)):
            if isinstance(getattr(self, name), kind):
                continue
            try:
                object.__setattr__(self, name, kind(getattr(self, name)))
            except ValueError:
                raise SpecError(
                    f"schedule of layer {self.name!r}: {name}={getattr(self, name)!r}, "
                    f"expected one of {[str(k) for k in kind]}"
                ) from None
        if not isinstance(self.name, str):
            raise SpecError(f"schedule of layer {self.name!r}: name={self.name!r}, expected a string")
        for name in ("pe", "simd", "ingest_channels"):
            value = getattr(self, name)
            if not is_size(value, 1):
                raise SpecError(f"schedule of layer {self.name!r}: {name}={value!r}, expected an integer >= 1")
            if value > MOST_PARALLEL:
                raise SpecError(
                    f"schedule of layer {self.name!r}: {name}={value!r}, expected at most {MOST_PARALLEL:,}"
                )
        if self.weight_place.is_loaded and self.data_flow is not DataFlow.SPILLED:
            raise SpecError(
                f"schedule of layer {self.name!r}: weight_place={str(self.weight_place)!r} with "
                f"data_flow={str(self.data_flow)!r}, expected 'spilled': only there is it better than 'streamed'"
            )


@dataclass(frozen=True)
class HostInterface:
    """How frames come in and results go out.

    Args:
        pixel_word_bits: A pixel of the input is padded to a multiple of this.
        result_word_bits: Results leave as raw accumulators in words of this size, and their layers need no rescale
            unit; `None`: as codes of `NetworkConfig.output_bit_width`.
    """

    pixel_word_bits: int = 1
    result_word_bits: int | None = None

    def __post_init__(self) -> None:
        for name in ("pixel_word_bits", "result_word_bits"):
            value = getattr(self, name)
            if not (value is None and name == "result_word_bits") and not is_size(value, 1):
                raise SpecError(f"host interface: {name}={value!r}, expected an integer >= 1")


@dataclass(frozen=True)
class Schedule:
    """Execution of a whole network.

    Args:
        network: Name of the network.
        layers: One entry for every layer of the network, in execution order: first all pipelined ones.
        host: How frames come in and results go out.

    Raises:
        SpecError: A layer occurs twice, a pipelined layer follows a shared one, or shared layers differ in folding
            or multiplier.
    """

    network: str
    layers: tuple[LayerSchedule, ...] = field(repr=False)
    host: HostInterface = HostInterface()

    def __post_init__(self) -> None:
        layers = self.layers
        if not (isinstance(layers, list | tuple) and all(isinstance(layer, LayerSchedule) for layer in layers)):
            raise SpecError(
                f"schedule of network {self.network!r}: layers={layers!r}, expected a list of LayerSchedules"
            )
        if not isinstance(self.host, HostInterface):
            raise SpecError(f"schedule of network {self.network!r}: host={self.host!r}, expected a HostInterface")
        object.__setattr__(self, "layers", tuple(layers))
        if len(self.by_name) != len(self.layers):
            raise SpecError(f"schedule of network {self.network!r}: a layer occurs twice")
        flows = [layer.data_flow.is_pipelined for layer in self.layers]
        if flows != sorted(flows, reverse=True):
            first = self.layers[flows.index(False)].name
            raise SpecError(
                f"schedule of network {self.network!r}: layer {first!r} runs on the shared engine, so no later layer "
                "can be pipelined"
            )
        engines = {(layer.pe, layer.simd, layer.multiplier) for layer in self.shared}
        if len(engines) > 1:
            raise SpecError(
                f"schedule of network {self.network!r}: layers on the shared engine have different (pe, simd, "
                f"multiplier): {sorted(engines)}"
            )

    @cached_property
    def by_name(self) -> Mapping[str, LayerSchedule]:
        """Layers by name."""
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def shared(self) -> tuple[LayerSchedule, ...]:
        """Layers on the shared engine, in execution order."""
        return tuple(layer for layer in self.layers if not layer.data_flow.is_pipelined)

    def __getitem__(self, name: str) -> LayerSchedule:
        try:
            return self.by_name[name]
        except KeyError:
            raise SpecError(f"layer {name!r} is not in the schedule of network {self.network!r}") from None

    def keeps_weights(self, layer: LayerSpec) -> bool:
        """Whether a layer on the shared engine needs words of its own for its weights when they are resident.

        It does not if another layer's, which it uses (`LayerSpec.weights_of`), are resident on the engine.  Pipelined
        layers work at the same time, so each keeps its own copy.
        """
        if layer.weights_of is None:
            return True
        owner = self[layer.weights_of]
        return owner.data_flow.is_pipelined or not owner.weight_place.is_resident

    def check_matches(self, network: NetworkSpec) -> None:
        """Raises `SpecError` unless the schedule has exactly the layers of `network`, in its order."""
        want = [layer.name for layer in network.layers]
        have = [layer.name for layer in self.layers]
        if want != have:
            missing = [name for name in want if name not in have]
            unknown = [name for name in have if name not in want]
            raise SpecError(
                f"schedule does not match network {network.name!r}: missing {missing}, unknown {unknown}, "
                "or another order of layers"
            )
        for layer in network.layers:
            place = self[layer.name].weight_place
            if layer.has_weights == (place is WeightPlace.NONE):
                raise SpecError(f"schedule of layer {layer.name!r}: weight_place={str(place)!r} does not suit its op")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` is the inverse."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Schedule:
        """Inverse of `to_dict`.

        Raises:
            SpecError: The version is another one, or a field is unknown, missing or invalid.
        """
        if not isinstance(data, Mapping):
            raise SpecError(f"a schedule is {type(data).__name__}, expected fields with values")
        values = dict(data)
        version = values.pop("version", None)
        if version != VERSION:
            raise SpecError(f"version={version!r} of a schedule, expected {VERSION}")
        try:
            values["layers"] = tuple(LayerSchedule(**layer) for layer in values["layers"])
            values["host"] = HostInterface(**values["host"])
            return cls(**values)
        except (TypeError, KeyError) as error:
            raise SpecError(f"schedule: {error}") from error
