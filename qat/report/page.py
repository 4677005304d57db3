"""The HTML report of a run: one file, pictures inside, readable without a network."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from hwmodel import CostReport
from hwmodel.table import HIGHER_IS_BETTER
from qat.files import write_bytes
from qat.report import plots
from qat.report.results import Result, result_rows
from qat.report.tables import LAYER_COLUMNS, layer_rows

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;color:#1a202c}
table{border-collapse:collapse;font-size:13px;margin:1em 0}
td,th{border-bottom:1px solid #e2e8f0;padding:.3em .6em;text-align:right}
td:first-child,th:first-child{text-align:left}
th{background:#f7fafc} img{max-width:100%} .note{background:#fffaf0;border-left:4px solid #dd6b20;padding:.5em 1em}
.scroll{overflow-x:auto} code{background:#f7fafc;padding:0 .2em}
"""


@dataclass(frozen=True)
class ReportData:
    """Everything that the report shows, in plain values.

    Args:
        title: Heading.
        board: Name of the board.
        bram18_available: RAMB18 of the board.
        results: Networks trained in full; the first row's float accuracy is the reference.
        trials: (number, target, compression, validation accuracy) of completed trials.
        fronts: By cost column of a front that was sought, (cost, validation accuracy) of completed trials.
        costs: Cost report of each network trained in full, by name.
        foretold: (observed, predicted, standard deviation) of the trials, each predicted from the others.
        sensitivity: Loss increase of each layer at its lowest precision.
        curves: (epoch, validation accuracy) by network name.
        notes: Paragraphs that a reader must know, for example how images were split.
        commands: (what, command) pairs that reproduce the run.
        environment: What the run was made with.
    """

    title: str
    board: str
    bram18_available: int
    results: Sequence[Result]
    trials: Sequence[tuple[int, str, float, float]] = ()
    foretold: Sequence[tuple[float, float, float]] = ()
    fronts: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    costs: Mapping[str, CostReport] = field(default_factory=dict)
    sensitivity: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    commands: Sequence[tuple[str, str]] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def write_report(data: ReportData, folder: Path) -> Path:
    """Writes `report.html` and `plots/*.png` into a run folder.

    Args:
        data: What to show.
        folder: The run folder.

    Returns:
        Path of the HTML file.
    """
    pictures = folder / "plots"
    pictures.mkdir(parents=True, exist_ok=True)
    parts = [f"<h1>{html.escape(data.title)}</h1>", _result_table(data.results)]
    parts += [f'<p class="note">{html.escape(note)}</p>' for note in data.notes]

    def show(name: str, heading: str, text: str, figure: Figure) -> None:
        png = io.BytesIO()
        figure.savefig(png, format="png")
        write_bytes(pictures / f"{name}.png", png.getvalue())
        picture = base64.b64encode(png.getvalue()).decode()
        alt = html.escape(heading)
        parts.append(f"<h2>{alt}</h2><p>{html.escape(text)}</p>")
        parts.append(f'<img alt="{alt}" src="data:image/png;base64,{picture}">')

    points = [(compression, accuracy) for _, _, compression, accuracy in data.trials]
    show(
        "front",
        "Accuracy against size",
        "Grey: trials of the search after their short training. Colour: networks trained in full, equally.",
        plots.front(points, data.results),
    )
    for column, costs in data.fronts.items():
        show(
            f"front_{column}",
            f"Accuracy against {column}",
            "The front that was sought; with two costs, each alone.",
            plots.cost_front(costs, column, higher_is_better=column in HIGHER_IS_BETTER),
        )
    if data.trials:
        searched = [(number, target, accuracy) for number, target, _, accuracy in data.trials]
        show("search", "The search", "Best accuracy so far for each target.", plots.progress(searched))
        show(
            "hypervolume",
            "Growth of the front",
            "Hypervolume of accuracy and compression over the trials, all targets together; reference: 0 % at 1x.",
            plots.hypervolume(points),
        )
    if data.foretold:
        show(
            "calibration",
            "Can the predictions be trusted?",
            "Each trial as the surrogate predicts it from all others; bars: one standard deviation of an observation.",
            plots.calibration(data.foretold),
        )
    for name, cost in data.costs.items():
        if next((r.kind for r in data.results if r.name == name), "") != "mix":
            continue
        show(
            f"precision_{name}",
            f"{name}: precision of each layer",
            "Bars: bits that hardware stores per weight of the layer, scales and indices included.",
            plots.precision(cost, data.sensitivity),
        )
        show(
            f"memory_{name}",
            f"{name}: block RAM",
            f"RAMB18 by layer on {data.board}, shaped as a synthesizer would.",
            plots.memory_map(cost, data.bram18_available),
        )
        show(f"traffic_{name}", f"{name}: off-chip traffic", "Bits that cross the chip's border.", plots.traffic(cost))
        parts.append(_layer_table(cost))
    if data.curves:
        show("training", "Training", "Validation accuracy, epoch by epoch.", plots.training(data.curves))
    parts.append(_definitions(data.commands, "Commands"))
    parts.append(_definitions(list(data.environment.items()), "Environment"))
    text = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(data.title)}</title>'
        f"<style>{STYLE}</style>{''.join(parts)}</html>"
    )
    path = folder / "report.html"
    write_bytes(path, text.encode())
    return path


def _html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _result_table(results: Sequence[Result]) -> str:
    names, *rows = result_rows(results)
    return _html_table(names, rows)


def _layer_table(cost: CostReport) -> str:
    rows = _html_table(LAYER_COLUMNS, layer_rows(cost))
    return f"<details><summary>Layers of {html.escape(cost.network)}</summary>{rows}</details>"


def _definitions(pairs: Sequence[tuple[str, str]], heading: str) -> str:
    if not pairs:
        return ""
    rows = "".join(f"<tr><td>{html.escape(k)}</td><td><code>{html.escape(v)}</code></td></tr>" for k, v in pairs)
    return f"<h2>{heading}</h2><table>{rows}</table>"
