"""Where tensors lie and what crosses the chip's border: off-chip bits, waiting rows, frame buffers.

A tensor goes where its readers want it:

| reader             | what it costs                                                                     |
|--------------------|-----------------------------------------------------------------------------------|
| a pipelined layer  | the reader's line buffer or FIFO; nothing off chip                                |
| a `frame` layer    | a frame buffer; two if the writer works on the next frame meanwhile (ping-pong),  |
|                    | and one for each frame by which others come later                                 |
| a `spilled` layer  | written off chip once, read once by each such reader                              |

The network input is read from off chip once (by each `spilled` reader once), results are written once.
Operations without weights join the engine's output path: what the layer right before hands only to them stays in it.
Normalisations do not: what they measure must be there first.

In a pipeline a group norm is a whole map behind its producer, and so is a pooling of the whole map, and a layer with
weights on a single row, as behind one.  What goes another way to the same reader waits as long.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

from hwmodel.cycles import reach
from hwmodel.dataflow import DataFlow, HostInterface
from hwmodel.network import INPUT, NORMALIZING, NetworkSpec, Op


@dataclass(frozen=True)
class Transfer:
    """Off-chip traffic of one tensor at one layer, per frame.

    Args:
        layer: Layer that reads or writes.
        tensor: Producer of the tensor (`"input"` included).
        kind: `ifm`, `ofm` or `shortcut` (an operand that was not produced by the layer right before).
    """

    layer: str
    tensor: str
    kind: str


@dataclass(frozen=True)
class FrameBuffer:
    """A shared buffer of whole feature maps.

    Args:
        tensors: Producers of the tensors that lie in it, one after the other.
    """

    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Placement:
    """Where tensors lie under a choice of data flows.

    Args:
        transfers: Feature maps that cross the chip's border.
        buffers: Frame buffers.
    """

    transfers: tuple[Transfer, ...]
    buffers: tuple[FrameBuffer, ...]


def elements(network: NetworkSpec, tensor: str) -> int:
    """Values of a tensor."""
    if tensor == INPUT:
        return network.input_channels * network.input_height * network.input_width
    layer = network.by_name[tensor]
    return layer.out_channels * layer.out_height * layer.out_width


def tensor_bits(network: NetworkSpec, tensor: str, bit_width: int, host: HostInterface) -> int:
    """Bits of a tensor off chip."""
    if tensor == INPUT:
        word = host.pixel_word_bits
        pixel = -(-network.input_channels * bit_width // word) * word
        return network.input_height * network.input_width * pixel
    if tensor in network.outputs and host.result_word_bits is not None:
        bit_width = host.result_word_bits
    return elements(network, tensor) * bit_width


def fused_tensors(network: NetworkSpec) -> frozenset[str]:
    """Tensors that only the operation right behind reads, and that operation has no weights.

    In the shared engine they pass through its output path and lie nowhere; what is normalised must be there first, and
    what is a result of the network leaves the chip.
    """
    fused = set()
    for before, layer in zip(network.layers, network.layers[1:], strict=False):
        readers = network.consumers[before.name]
        passes = not layer.has_weights and layer.op not in NORMALIZING
        is_result = before.name in network.outputs
        if passes and not is_result and readers == (layer,) and layer.inputs.count(before.name) == 1:
            fused.add(before.name)
    return frozenset(fused)


@lru_cache(maxsize=4096)
def place(network: NetworkSpec, flows: tuple[DataFlow, ...]) -> Placement:
    """Where tensors lie.

    Args:
        network: The network.
        flows: Data flow of each layer, in execution order.
    """
    flow_of = dict(zip((layer.name for layer in network.layers), flows, strict=True))
    fused = fused_tensors(network)
    names = [layer.name for layer in network.layers]
    before = dict(zip(names[1:], names, strict=False))
    transfers: list[Transfer] = []
    for tensor in (INPUT, *names):
        if tensor in fused and not flow_of[tensor].is_pipelined:
            continue
        spilled = [reader for reader in network.consumers[tensor] if flow_of[reader.name] is DataFlow.SPILLED]
        if tensor == INPUT:
            others = [reader for reader in network.consumers[tensor] if reader not in spilled]
            readers = [*spilled, *others[:1]]
        else:
            readers = spilled
            if spilled or tensor in network.outputs:
                transfers.append(Transfer(tensor, tensor, "ofm"))
        for reader in readers:
            is_shortcut = reader.op in (Op.ADD, Op.CONCAT, Op.MUL) and before.get(reader.name) != tensor
            transfers.append(Transfer(reader.name, tensor, "shortcut" if is_shortcut else "ifm"))
    return Placement(tuple(transfers), _frame_buffers(network, flow_of, fused))


def _frame_buffers(
    network: NetworkSpec, flow_of: Mapping[str, DataFlow], fused: frozenset[str]
) -> tuple[FrameBuffer, ...]:
    """Assigns tensors to buffers by their lifetimes: the first buffer that is free, in order of execution."""
    position = {layer.name: index for index, layer in enumerate(network.layers)}
    crossing: list[FrameBuffer] = []
    late = frames_before(network)
    latest = max(late[tensor] for tensor in late if tensor == INPUT or flow_of[tensor].is_pipelined)
    lifetimes: list[tuple[int, int, str]] = []
    for tensor in (INPUT, *position):
        frame_readers = [r for r in network.consumers[tensor] if flow_of[r.name] is DataFlow.FRAME]
        if not frame_readers:
            continue
        if tensor == INPUT or flow_of[tensor].is_pipelined:
            crossing += [FrameBuffer((tensor,))] * (2 + latest - late[tensor])
        elif tensor not in fused:
            # A fused chain writes its result while its first layer still reads: the result lives from there.
            start = position[tensor]
            while start and network.layers[start - 1].name in fused and not network.layers[start].has_weights:
                start -= 1
            lifetimes.append((start, max(position[reader.name] for reader in frame_readers), tensor))
    shared: list[tuple[int, list[str]]] = []  # (busy until, tensors)
    for start, end, tensor in sorted(lifetimes):
        for index, (busy_until, tensors) in enumerate(shared):
            if busy_until < start:
                shared[index] = (end, [*tensors, tensor])
                break
        else:
            shared.append((end, [tensor]))
    return (*crossing, *(FrameBuffer(tuple(tensors)) for _, tensors in shared))


@lru_cache(maxsize=256)
def frames_before(network: NetworkSpec) -> Mapping[str, int]:
    """Frames by which each tensor (`"input"` included) is later than the network's input: whole maps on its way."""
    found = {INPUT: 0}
    for layer in network.layers:
        gathers = layer.in_height > 1 and (layer.op is Op.GROUP_NORM or layer.out_height == 1)
        takes_a_frame = gathers or (layer.has_weights and layer.in_height == 1)
        found[layer.name] = max(found[tensor] for tensor in layer.inputs) + takes_a_frame
    return found


@lru_cache(maxsize=256)
def waiting_rows(network: NetworkSpec) -> Mapping[tuple[str, str], int]:
    """Rows of each operand of an `add`, `concat` or `mul` that wait for the slowest operand in a pipeline.

    A layer hands on a row when it has the rows that its kernel needs and has computed one row itself.  One whose map
    is a single row, as behind a pooling of whole maps, may take a frame for it.  An early operand may be several frames
    ahead.
    """
    lag = {INPUT: 0.0}  # in rows of the network input
    waiting: dict[tuple[str, str], int] = {}
    for layer in network.layers:
        scale = network.input_height / layer.in_height
        start = max(lag[tensor] for tensor in layer.inputs)
        if layer.op in (Op.ADD, Op.CONCAT, Op.MUL):
            for tensor in layer.inputs:
                waiting[layer.name, tensor] = ceil((start - lag[tensor]) / scale) + 1
        needed = layer.in_height - 1 if layer.op is Op.GROUP_NORM else reach(layer, 0) - 1 - layer.padding[0]
        lag[layer.name] = start + max(0, needed) * scale + (scale if layer.has_weights else 0)
    return waiting
