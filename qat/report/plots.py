"""Plots of a run.  Each function draws one figure from plain values and returns it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from hwmodel import CostReport
from qat.report.results import Result, score_name

BLUE, ORANGE, GREY, GREEN = "#2b6cb0", "#dd6b20", "#a0aec0", "#2f855a"
BIT_COLOURS = {
    1: "#1a365d",
    2: "#2b6cb0",
    3: "#4299e1",
    4: "#90cdf4",
    5: "#bee3f8",
    6: "#fbd38d",
    7: "#f6ad55",
    8: "#dd6b20",
}


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained", dpi=120)


def front(trials: Sequence[tuple[float, float]], results: Sequence[Result]) -> Figure:
    """Accuracy against compression: short trials, and the networks trained in full.

    Args:
        trials: (compression, validation accuracy after the trial's short training).
        results: Networks trained in full, on test images.
    """
    figure = _figure(7.5, 4.2)
    axes = figure.subplots()
    if trials:
        compression, score = zip(*trials, strict=True)
        axes.scatter(compression, np.array(score) * 100, s=18, color=GREY, label="trials (short training, validation)")
    for kind, colour, marker in (("uniform", ORANGE, "s"), ("mix", BLUE, "o")):
        chosen = [result for result in results if result.kind == kind]
        if chosen:
            label = "uniform bits, trained in full (test)" if kind == "uniform" else "found mix, trained in full (test)"
            points = [(r.compression, 100 * r.quantized_score) for r in chosen]
            compressions, scores = zip(*points, strict=True)
            axes.scatter(compressions, scores, s=60, color=colour, marker=marker, label=label, zorder=3)
            for result, point in zip(chosen, points, strict=True):
                axes.annotate(result.name, point, xytext=(5, 5), textcoords="offset points", fontsize=8)
    if results:
        axes.axhline(100 * results[0].float_score, color=GREEN, linewidth=1, linestyle="--", label="float (test)")
    axes.set_xscale("log")
    ticks = [2, 4, 8, 12, 16, 24, 32]
    axes.set_xticks(ticks, [f"{tick}x" for tick in ticks])
    axes.minorticks_off()
    sizes = [size for size, _ in trials] + [result.compression for result in results]
    if sizes:
        axes.set_xlim(min(sizes) / 1.25, max(sizes) * 1.4)  # room for names
    axes.set_xlabel("compression, everything stored counted")
    axes.set_ylabel(f"{score_name(results)} in %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="best")
    return figure


def cost_front(trials: Sequence[tuple[float, float]], column: str, *, higher_is_better: bool) -> Figure:
    """Accuracy of the trials against a cost, and what no other trial beats in both.

    Args:
        trials: (cost, validation accuracy after the trial's short training).
        column: Name of the cost.
        higher_is_better: Of the cost.
    """
    figure = _figure(7.0, 3.6)
    axes = figure.subplots()
    cost, accuracy = np.array(trials).T
    order = np.argsort(-cost if higher_is_better else cost, kind="stable")
    axes.scatter(cost, 100 * accuracy, s=18, color=GREY, label="trials (short training, validation)")
    best = np.maximum.accumulate(accuracy[order])
    axes.plot(cost[order], 100 * best, color=BLUE, drawstyle="steps-post", label="best at this cost")
    axes.set_xlabel(column)
    axes.set_ylabel("validation score in %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="best")
    return figure


def precision(report: CostReport, sensitivity: Mapping[str, float]) -> Figure:
    """Stored bits per weight of each layer of a configuration, above the layer's sensitivity.

    Args:
        report: Cost of the configuration.
        sensitivity: Loss increase of each layer at its lowest precision, by layer name.  Layers that use another
            one's weights are not among them and not drawn.
    """
    layers = [layer for layer in report.layers if layer.name in sensitivity]
    names = [layer.name for layer in layers]
    figure = _figure(max(6.0, 0.52 * len(names)), 4.6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    bits = [layer.stored_bits / layer.weights for layer in layers]
    bars = top.bar(names, bits, color=[BIT_COLOURS[layer.weight_bit_width] for layer in layers])
    for bar, layer in zip(bars, layers, strict=True):
        short = {"dense": "", "sparse": f"\nd={layer.density:.2g}", "binary_plus_sparse": f"\n+{layer.density:.1%}"}
        text = f"{layer.weight_bit_width}b{short[layer.weight_format]}"
        top.annotate(text, (bar.get_x() + bar.get_width() / 2, bar.get_height()), ha="center", va="bottom", fontsize=7)
    top.set_ylabel("stored bits / weight")
    top.margins(y=0.25)
    bottom.bar(names, [max(sensitivity[name], 0.0) for name in names], color=GREY)
    bottom.set_ylabel("loss increase\nat lowest precision")
    bottom.tick_params(axis="x", labelrotation=90, labelsize=7)
    for axes in (top, bottom):
        axes.grid(axis="y", alpha=0.3)
    return figure


def memory_map(report: CostReport, available: int) -> Figure:
    """Block RAMs by layer and purpose, of the layers that have any.

    Args:
        report: Cost of the configuration.
        available: RAMB18 of the board.
    """
    owners = list(dict.fromkeys(memory.owner for memory in report.memories if memory.bram18))
    purposes = list(dict.fromkeys(memory.purpose for memory in report.memories))
    figure = _figure(max(6.0, 0.2 * len(owners)), 3.6)
    axes = figure.subplots()
    bottom = np.zeros(len(owners))
    for purpose in purposes:
        used = np.array(
            [sum(m.bram18 for m in report.memories if (m.owner, m.purpose) == (owner, purpose)) for owner in owners]
        )
        if used.any():
            axes.bar(owners, used, bottom=bottom, label=purpose)
            bottom += used
    axes.set_ylabel("RAMB18")
    axes.set_title(f"{report.bram18} of {available} RAMB18; memories that fit LUTs take none", fontsize=9)
    axes.tick_params(axis="x", labelrotation=90, labelsize=7)
    axes.grid(axis="y", alpha=0.3)
    if bottom.any():
        axes.legend(fontsize=8)
    return figure


def traffic(report: CostReport) -> Figure:
    """Off-chip traffic per frame beside layer-by-layer execution."""
    figure = _figure(6.0, 2.4)
    axes = figure.subplots()
    left = 0.0
    for kind, colour in (("weight", BLUE), ("ifm", ORANGE), ("ofm", GREEN), ("shortcut", GREY)):
        value = getattr(report, f"offchip_{kind}_bits") / 8192
        if value:
            axes.barh("this schedule", value, left=left, color=colour, label=kind)
            left += value
    axes.barh("layer by layer", report.baseline_offchip_bits / 8192, color="#e2e8f0", label="all (layer by layer)")
    axes.set_xlabel("KiB off chip per frame")
    axes.legend(fontsize=8)
    axes.grid(axis="x", alpha=0.3)
    return figure


def training(curves: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Validation accuracy of the networks trained in full.

    Args:
        curves: (epoch, validation accuracy) by network name.
    """
    figure = _figure(7.0, 3.4)
    axes = figure.subplots()
    curves = {name: points for name, points in curves.items() if points}
    for name, points in curves.items():
        axes.plot([epoch + 1 for epoch, _ in points], [100 * value for _, value in points], marker=".", label=name)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation score in %")
    axes.grid(alpha=0.3)
    if curves:
        axes.legend(fontsize=8)
    return figure


def calibration(foretold: Sequence[tuple[float, float, float]]) -> Figure:
    """What the surrogate foretold of each trial from the others, against what was observed.

    Args:
        foretold: (observed, predicted, standard deviation) of each trial.
    """
    figure = _figure(4.8, 4.4)
    axes = figure.subplots()
    observed, predicted, std = (100 * np.array(values) for values in zip(*foretold, strict=True))
    ends = [min(observed.min(), predicted.min()), max(observed.max(), predicted.max())]
    axes.plot(ends, ends, color=GREY, linewidth=1, label="observed as predicted")
    axes.errorbar(observed, predicted, yerr=std, fmt="o", markersize=4, color=BLUE, ecolor=GREY, elinewidth=1)
    inside = np.mean(np.abs(predicted - observed) <= std)
    errors = np.abs(predicted - observed)
    axes.set_title(
        f"median error {np.median(errors):.2f} points;\n{inside:.0%} within one standard deviation (ideal: 68 %)",
        fontsize=9,
    )
    axes.set_xlabel("observed score in %")
    axes.set_ylabel("predicted without this trial, in %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def hypervolume(trials: Sequence[tuple[float, float]]) -> Figure:
    """How the front of accuracy and size grows with the trials.

    Args:
        trials: (compression, validation accuracy) in order.
    """
    figure = _figure(7.0, 2.8)
    axes = figure.subplots()
    volumes = np.array([dominated_area(trials[: count + 1]) for count in range(len(trials))])
    axes.plot(range(1, len(trials) + 1), volumes, color=BLUE, drawstyle="steps-post")
    axes.set_xlabel("trial")
    axes.set_ylabel("hypervolume\n(accuracy x compression)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    return figure


def dominated_area(points: Sequence[tuple[float, float]]) -> float:
    """Area under the front of (compression, accuracy), both larger is better, from the reference (1, 0).

    >>> dominated_area([(3.0, 0.5), (2.0, 0.75), (2.0, 0.5)])
    1.25
    """
    area, best = 0.0, 0.0
    for compression, accuracy in sorted(points, reverse=True):
        if accuracy > best:
            area += (compression - 1) * (accuracy - best)
            best = accuracy
    return area


def progress(trials: Sequence[tuple[int, str, float]]) -> Figure:
    """Best validation accuracy so far, by target.

    Args:
        trials: (trial number, target that the trial serves, validation accuracy), in order.
    """
    figure = _figure(7.0, 3.2)
    axes = figure.subplots()
    for index, target in enumerate(dict.fromkeys(target for _, target, _ in trials)):
        points = [(number, 100 * value) for number, name, value in trials if name == target]
        numbers, values = zip(*points, strict=True)
        colour = f"C{index}"
        axes.scatter(numbers, values, s=14, color=colour, alpha=0.5)
        axes.plot(numbers, np.maximum.accumulate(values), color=colour, drawstyle="steps-post", label=target)
    axes.set_xlabel("trial")
    axes.set_ylabel("validation score in %\nafter short training")
    axes.grid(alpha=0.3)
    if trials:
        axes.legend(fontsize=8)
    return figure
