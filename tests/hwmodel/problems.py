"""Random networks with boards small enough to try every schedule, and what trying them all finds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np

from hwmodel import (
    INPUT,
    Board,
    DataFlow,
    LayerConfig,
    LayerSpec,
    Multiplier,
    NetworkConfig,
    NetworkSpec,
    Op,
    load_board,
)
from hwmodel.chains import Cut
from hwmodel.cost import dram_cycles
from hwmodel.options import RESOURCES, Space
from hwmodel.segments import Segments
from tests.hwmodel.conftest import conv

SPACE = Space(
    data_flows=(DataFlow.ROW_PIXEL,),
    multipliers=(Multiplier.DSP_PACKED,),
    pipelined_pe=2,
    pipelined_products=4,
    shared_pe=(1, 4),
    shared_simd=(2,),
)


def random_network(pick: np.random.Generator) -> NetworkSpec:
    """Up to six layers: convolutions, now and then with another one's weights, a shortcut, a pooling or a norm."""
    layers: list[LayerSpec] = []
    source, channels, size = INPUT, 2, 8
    kept: str | None = None  # an earlier tensor of the same shape
    while len(layers) < pick.integers(1, 7):
        kind = pick.choice(["conv", "conv", "conv", "add", "pool", "norm"])
        name = f"{kind}{len(layers)}"
        if kind == "conv" or not layers:
            out_channels = int(pick.choice([2, 4])) if kept is None else channels
            layer = conv(name, source, channels, out_channels, size, int(pick.choice([1, 3])))
            if out_channels == channels and pick.random() < 0.3:
                layer = replace(layer, groups=channels)
            alike = [
                other.name
                for other in layers
                if other.weight_shape == layer.weight_shape and other.groups == layer.groups and not other.weights_of
            ]
            shares = layer.has_weights and alike and pick.random() < 0.4
            layers.append(replace(layer, weights_of=str(pick.choice(alike))) if shares else layer)
            kept = source if out_channels == channels and source != INPUT else None
            channels = out_channels
        elif kind == "add" and kept is not None and kept != source:
            layers.append(LayerSpec(name, Op.ADD, (source, kept), channels, size, size, channels, size, size))
            kept = None
        elif kind == "norm":
            op = Op(pick.choice(["group_norm", "l2_norm"]))
            layers.append(LayerSpec(name, op, (source,), channels, size, size, channels, size, size))
        elif kind == "pool" and size > 2:
            half = size // 2
            layers.append(
                LayerSpec(name, Op.MAX_POOL, (source,), channels, size, size, channels, half, half, (2, 2), (2, 2))
            )
            size, kept = half, None
        else:
            continue
        source = name
    network = NetworkSpec("random", 2, 8, 8, tuple(layers))
    read_too = [layer.name for layer in layers if pick.random() < 0.1 and layer.name not in network.outputs]
    return replace(network, outputs=(*network.outputs, *read_too))


def random_config(network: NetworkSpec, pick: np.random.Generator) -> NetworkConfig:
    """Random dense or two-plane precision per layer."""
    choices = [LayerConfig(1, 4), LayerConfig(4, 4), LayerConfig(8, 8)]
    choices += [LayerConfig(1, 4, sparsity, "binary_plus_sparse") for sparsity in (0.9, 0.3)]
    drawn = {layer.name: choices[pick.integers(len(choices))] for layer in network.weighted}
    return NetworkConfig(tuple((layer.name, drawn[layer.weights_of or layer.name]) for layer in network.weighted))


def exhaustive(segments: Segments, board: Board) -> tuple[int, int, int] | None:
    """The best goals over every cut and every choice of options."""
    return min(all_goals(segments, board), default=None)


def all_goals(segments: Segments, board: Board) -> Iterator[tuple[int, int, int]]:
    """The goals of every choice of options that fits."""
    budgets = np.array([getattr(board, name) for name in RESOURCES])
    for cut in (same for one in segments.cuts for same in (one, *segments.loading(one))):
        groups = segments.groups(cut, streams=True)
        for picks in product(*(range(len(group.cycles)) for group in groups)):
            used = sum(group.use[pick] for group, pick in zip(groups, picks, strict=True))
            if (used > budgets).any():
                continue
            offchip = cut.map_bits + sum(int(g.offchip_bits[p]) for g, p in zip(groups, picks, strict=True))
            cycles = max(int(g.cycles[p]) for g, p in zip(groups, picks, strict=True))
            yield offchip, max(1, cycles, dram_cycles(offchip, board)), int(used[0])


def random_problem(pick: np.random.Generator) -> tuple[Segments, Board]:
    """A network, its precision and a small board, with few enough schedules to try them all."""
    network = random_network(pick)
    config = random_config(network, pick)
    board = replace(
        load_board("zcu104"),
        bram18=int(pick.integers(1, 14)),
        uram=int(pick.choice([0, 0, 2])),
        lut=int(pick.choice([1500, 2500, 5000, 20_000])),
        dsp=int(pick.choice([3, 8, 30])),
    )
    segments = Segments(network, config, board, SPACE)
    whole = segments.groups(Cut(len(network.layers), 0, 0), streams=True)
    if np.prod([float(len(group.cycles)) for group in whole]) > 3000:
        board = replace(board, uram=0)
        segments = Segments(network, config, board, replace(SPACE, pipelined_products=1))
    return segments, board


def random_tall_problem(pick: np.random.Generator) -> tuple[Segments, Board]:
    """Maps too large for the board and weights that nearly fill it: now and then the best schedule loads some."""
    size, channels = int(pick.choice([16, 24, 32])), int(pick.choice([24, 32, 48]))
    shape = (channels, size, size)
    layers = [conv("conv0", INPUT, 4, channels, size, 1)]
    for index in range(1, int(pick.integers(3, 6))):
        source, name = layers[-1].name, f"conv{index}"
        layer = conv(name, source, channels, channels, size, int(pick.choice([1, 3, 3])))
        owners = [one.name for one in layers if one.weight_shape == layer.weight_shape and not one.weights_of]
        if index > 1 and pick.random() < 0.2:
            earlier = layers[int(pick.integers(index - 1))].name
            layer = LayerSpec(name, Op.ADD, (source, earlier), *shape, *shape)
        elif pick.random() < 0.1:
            layer = LayerSpec(name, Op.GROUP_NORM, (source,), *shape, *shape)
        elif owners and pick.random() < 0.4:
            layer = replace(layer, weights_of=owners[0])
        layers.append(layer)
    network = NetworkSpec("tall", 4, size, size, tuple(layers))
    board = replace(
        load_board("zcu104"),
        bram18=int(pick.integers(4, 14)),
        uram=int(pick.choice([0, 0, 1])),
        dsp=int(pick.choice([3, 4])),
        lut=int(pick.choice([1500, 3000])),
        dram_bytes_per_s=int(pick.choice([10**8, 10**9, 10**10])),
    )
    space = replace(SPACE, pipelined_products=2, shared_pe=(1, 2))
    return Segments(network, random_config(network, pick), board, space), board
