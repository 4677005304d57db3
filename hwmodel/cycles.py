"""Cycles of one layer in each data flow; foldings may be arrays (see `hwmodel.compute`)."""

from __future__ import annotations

import numpy as np

from hwmodel.compute import ROOT_CYCLES, Count, folds, larger, sharing
from hwmodel.dataflow import DataFlow, Execution
from hwmodel.network import NORMALIZING, LayerSpec, Op


def reach(layer: LayerSpec, axis: int) -> int:
    """Rows (axis 0) or columns (axis 1) that a kernel spans, dilation included."""
    return layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1


def array_depth(simd: Count) -> Count:
    """Pipeline stages of a MAC array: memory read, multiplication, adder tree, accumulation.

    >>> array_depth(8)
    6
    """
    stages = np.ceil(np.log2(simd))
    return 3 + (stages.astype(np.int64) if isinstance(stages, np.ndarray) else int(stages))


def shared_folds(layer: LayerSpec, pe: Count, simd: Count) -> Count:
    """`folds` on the shared engine, whose buffers deliver `simd` activations per cycle, the same for all of `pe`.

    Of a layer with groups only the output channels of one group work at a time.
    """
    return folds(layer, sharing(layer, pe), simd)


def layer_cycles(layer: LayerSpec, plan: Execution) -> Count:
    """Cycles between two frames that a layer needs of its engine, if nobody makes it wait.

    Operations without weights run in the output path of the shared engine and cost it nothing, but normalisations: they
    need the whole map first (whose channels come in parts there), and then pass over it once more.  In a pipeline all
    of them are a stage like any other.  One unit makes the inverse roots: of groups before the pass, of pixels in it.
    """
    if not layer.has_weights:
        if not plan.data_flow.is_pipelined and layer.op not in NORMALIZING:
            return 0
        if layer.op in (Op.REORG, Op.FLATTEN):  # as many values leave as come, pixels become channels
            return layer.in_height * layer.in_width * -(-layer.in_channels // plan.simd)
        pixels = max(layer.in_height * layer.in_width, layer.out_height * layer.out_width)
        pixel_cycles = -(-max(layer.in_channels, layer.out_channels) // plan.simd)
        if layer.op is Op.L2_NORM:
            return pixels * larger(pixel_cycles, ROOT_CYCLES)
        roots = layer.groups if layer.op is Op.GROUP_NORM else 0
        return pixels * pixel_cycles + roots * ROOT_CYCLES
    if plan.data_flow is DataFlow.ROW_PIXEL:
        return pixel_order_cycles(
            layer, folds(layer, plan.pe, plan.simd), -(-layer.in_channels // plan.ingest_channels)
        )
    if plan.data_flow is DataFlow.ROW_PASS:
        arriving = layer.in_height * layer.in_width * -(-layer.in_channels // plan.ingest_channels)
        return larger(pass_order_cycles(layer, plan), arriving)
    return pass_order_cycles(layer, plan)


def pixel_order_cycles(layer: LayerSpec, pixel_folds: Count, ingest_cycles: Count = 1) -> Count:
    """Frame interval of a streaming engine that finishes one output pixel after the other.

    A pixel (padding included) enters the line buffer in `ingest_cycles`, while the array works on a copy of the window
    before it.  The window moves on when both are done.

    Args:
        layer: A convolution or fully connected layer.
        pixel_folds: Cycles per output pixel.
        ingest_cycles: Cycles per input pixel.

    Source:
        Derived from the loop structure; equals OH*OW*F + (OH-1)*max(0, K-F) + max(0, (K-1)*W + K - F) for stride 1
        without padding.  Exact in RTL simulation: `benchmarks/verilator_cycles.py`.
    """
    _, _, to_next_frame = _pixels_between_windows(layer)
    return _within_frame_cycles(layer, pixel_folds, ingest_cycles) + larger(pixel_folds, to_next_frame * ingest_cycles)


def pixel_order_latency(layer: LayerSpec, pixel_folds: Count, simd: Count, ingest_cycles: Count = 1) -> Count:
    """Cycles from the first pixel to the last result of one frame, for the engine of `pixel_order_cycles`."""
    padded_width = layer.in_width + layer.padding[1] + layer.end_padding[1]
    first_window = (reach(layer, 0) - 1) * padded_width + reach(layer, 1)
    steps = _within_frame_cycles(layer, pixel_folds, ingest_cycles)
    return first_window * ingest_cycles + steps + pixel_folds + array_depth(simd)


def _within_frame_cycles(layer: LayerSpec, pixel_folds: Count, ingest_cycles: Count) -> Count:
    """Cycles from the first window of a frame to the last."""
    in_row, to_next_row, _ = _pixels_between_windows(layer)
    rows, columns = layer.out_height, layer.out_width
    return rows * (columns - 1) * larger(pixel_folds, in_row * ingest_cycles) + (rows - 1) * larger(
        pixel_folds, to_next_row * ingest_cycles
    )


def _pixels_between_windows(layer: LayerSpec) -> tuple[int, int, int]:
    """Pixels that a window takes in more than the one before it: in a row, in the next row, in the next frame."""
    padded_height = layer.in_height + layer.padding[0] + layer.end_padding[0]
    padded_width = layer.in_width + layer.padding[1] + layer.end_padding[1]
    within_row = (layer.out_width - 1) * layer.stride[1]
    to_next_row = layer.stride[0] * padded_width - within_row
    to_next_frame = (padded_height - (layer.out_height - 1) * layer.stride[0]) * padded_width - within_row
    return layer.stride[1], to_next_row, to_next_frame


def pass_order_cycles(layer: LayerSpec, plan: Execution) -> Count:
    """Cycles per frame of an engine that makes passes: over a row, or over the frame.

    A pass applies one fold of the weights to all pixels of the row (frame).  It streams the columns that the
    windows span, and the array drains before the next pass adds to the same sums.  A 1x1 layer on the shared engine
    needs no window, so its folds follow each other without draining.
    """
    folds_of = folds if plan.data_flow is DataFlow.ROW_PASS else shared_folds
    pixel_folds = folds_of(layer, plan.pe, plan.simd)
    depth = array_depth(plan.simd)
    if plan.data_flow is not DataFlow.ROW_PASS and (layer.op is Op.LINEAR or layer.kernel_size == (1, 1)):
        return pixel_folds * layer.out_height * layer.out_width + depth
    columns = (layer.out_width - 1) * layer.stride[1] + reach(layer, 1)
    if plan.data_flow is DataFlow.FRAME:
        return pixel_folds * (layer.out_height * columns + depth)
    return pixel_folds * layer.out_height * (columns + depth)
