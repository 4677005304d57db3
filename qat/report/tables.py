"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from hwmodel import Board, CostReport
from qat.report.results import Result, result_rows

LAYER_COLUMNS = (
    "layer",
    "data flow",
    "pe x simd",
    "weights",
    "held in",
    "bits",
    "density",
    "stored KiB",
    "RAMB18",
    "LUT",
    "DSP",
    "cycles",
    "off-chip KiB",
)
"""Headings of the layer table; also of the one in the HTML page."""

BITS_PER_KIB = 8192


def result_table(results: Sequence[Result], title: str) -> Table:
    """The networks of a run that were trained in full, one column each."""
    table = Table(title=title)
    names, *rows = result_rows(results)
    for name in names:
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        table.add_row(*row)
    return table


def layer_rows(report: CostReport) -> list[tuple[str, ...]]:
    """One row of text per layer, in the order of `LAYER_COLUMNS`."""
    rows: list[tuple[str, ...]] = []
    for layer in report.layers:
        offchip = (
            layer.offchip_weight_bits + layer.offchip_ifm_bits + layer.offchip_ofm_bits + layer.offchip_shortcut_bits
        )
        rows.append(
            (
                layer.name,
                str(layer.data_flow),
                f"{layer.pe} x {layer.simd}",
                f"{layer.weights:,}" if layer.weights else "",
                layer.weight_place.replace("_", " ") if layer.weights else "",
                str(layer.weight_bit_width) if layer.weights else "",
                f"{layer.density:.3f}" if layer.weights else "",
                f"{layer.stored_bits / BITS_PER_KIB:,.2f}",
                f"{layer.bram18:,}",
                f"{layer.lut:,}",
                f"{layer.dsp:,}",
                f"{layer.cycles:,}",
                f"{offchip / BITS_PER_KIB:,.1f}",
            )
        )
    return rows


def cost_table(report: CostReport, board: Board) -> Table:
    """What a configuration costs on a board, layer by layer, with totals against the board in the caption."""
    caption = (
        f"{report.bits_per_weight:.3f} bits per weight ({report.entropy_bound_bits / report.total_weights:.3f} with "
        f"indices at their entropy), {report.compression:.2f}x; RAMB18 {report.bram18} of {board.bram18}, UltraRAM "
        f"{report.uram} of {board.uram}, DSP {report.dsp} of {board.dsp}, LUT {report.lut:,} of {board.lut:,}; "
        f"off chip {report.offchip_bits / BITS_PER_KIB:.1f} KiB per frame (layer by layer "
        f"{report.baseline_offchip_bits / BITS_PER_KIB:.1f}); {report.fps:,.0f} frames/s at "
        f"{report.clock_hz / 1e6:.0f} MHz, set by {report.bottleneck}, latency {1e3 * report.latency_s:.3f} ms, "
        f"{report.gops:,.0f} GOP/s (2 per MAC), {100 * report.mac_efficiency:.0f} % of the arrays busy; energy "
        f"{report.energy_rel:.3f} of 8 bits layer by layer; used most: {report.binding}"
    )
    title = escape(f"{report.network} on {report.board}")
    table = Table(title=title, caption=escape(caption), caption_justify="left")
    for heading in LAYER_COLUMNS:
        table.add_column(heading, justify="left" if heading in ("layer", "data flow", "held in") else "right")
    for row in layer_rows(report):
        table.add_row(*map(escape, row))
    return table
