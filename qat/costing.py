"""What a network costs on boards: the tables, files and plots of `scripts/cost.py`.  Trains nothing."""

from __future__ import annotations

import io
import json
import math
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import yaml
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import hwmodel
from hwmodel import Board, BudgetError, CostReport, DataFlow, NetworkConfig, NetworkSpec
from hwmodel.errors import BoardError, SpecError
from qat.checks import require
from qat.compose import CONF_FOLDER
from qat.config import Config
from qat.errors import ConfigError, TraceError
from qat.files import write_bytes, write_rows, write_text
from qat.report import cost_table, plots
from qat.uniform import uniform_of

KEYS = ("network", "board", "precision", "min_fps", "out")
"""What `split_arguments` takes for itself: layer tables before choices of `conf/network`, boards that `conf/board` has
not."""


WIDE = 170
"""Columns of a table that goes into a file or another program."""


@dataclass(frozen=True)
class CostArguments:
    """What is asked, beside the configuration that all scripts share.

    Args:
        network: Name of a layer table, or an ONNX file; None for the configured network.
        boards: Names or YAML files; none for the configured board.
        precision: JSON file of a `NetworkConfig`, such as a run's `networks/<name>/config.json`; None for the uniform
            precisions of `baselines`.
        min_fps: Frames per second that schedules have to reach, a number as it was typed; of those that do, the one of
            fewest off-chip bits counts.
        out: Folder of JSON, CSV and plots; None writes nothing.
        refused: What is wrong with the command line; `cost` says the first of it.
    """

    network: str | None = None
    boards: tuple[str, ...] = ()
    precision: Path | None = None
    min_fps: str = "0"
    out: Path | None = None
    refused: tuple[str, ...] = ()


def split_arguments(arguments: Sequence[str]) -> tuple[CostArguments, list[str]]:
    """Separates what only this script knows from what Hydra composes.

    Args:
        arguments: A command line without the program's name.

    Returns:
        `network=` of a layer table or ONNX file, `board=` of several boards, files or `all`, `precision=`,
        `min_fps=`, `out=`; and the rest, in which the import path of a network (`network=module:callable`) is put as
        Hydra has it.
    """
    taken: dict[str, str] = {}
    rest: list[str] = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        is_choice = (CONF_FOLDER / key / f"{value}.yaml").is_file() and value not in hwmodel.network_names()
        if key == "network" and ":" in value and not value.endswith(".onnx"):
            # A network of three colours to start from; what follows on the command line changes it.
            rest += ["network=resnet20", *_images_for("resnet20", arguments)]
            rest += [f'network.factory="{value}"', f"network.name={value.rpartition(':')[2]}"]
        elif key in KEYS and not is_choice:
            taken[key] = value
        else:
            rest += [argument, *(_images_for(value, arguments) if key == "network" else ())]
    refused = [f"{key}= has no value; leave it out, or say which" for key, value in taken.items() if not value]
    useless = [(argument, why) for argument in rest if (why := _useless(argument, taken))]
    refused += [f"{argument} has no effect: {why}" for argument, why in useless]
    names = [name.strip() for name in taken.get("board", "").strip("[]").split(",")]
    boards = [known for name in names if name for known in (hwmodel.board_names() if name == "all" else (name,))]
    files = {name: Path(taken[name]) if name in taken else None for name in ("precision", "out")}
    asked = CostArguments(
        taken.get("network"),
        tuple(dict.fromkeys(boards)),
        min_fps=taken.get("min_fps", "0"),
        refused=tuple(refused),
        **files,
    )
    ignored = {argument for argument, _ in useless}
    return asked, [argument for argument in rest if argument not in ignored]


def _images_for(choice: str, arguments: Sequence[str]) -> list[str]:
    """Settings of images that suit a network: nothing looks at images here, but settings have to agree."""
    if any(argument.partition("=")[0] in ("data", "experiment", "run") for argument in arguments):
        return []
    shapes = [argument.partition("=")[2] for argument in arguments if argument.startswith("network.input_shape=")]
    try:
        stored = yaml.safe_load((CONF_FOLDER / "network" / f"{choice}.yaml").read_text(encoding="utf-8"))
        channels = int((yaml.safe_load(shapes[-1]) if shapes else stored["input_shape"])[0])
    except (OSError, yaml.YAMLError, TypeError, ValueError, LookupError):
        return []  # composing the settings says what is wrong
    if channels == 1:
        return []  # as the images that every script starts from
    values = {name: f"[{','.join([number] * channels)}]" for name, number in (("mean", "0.5"), ("std", "0.25"))}
    return ["data=cifar10", *(f"data.{name}={value}" for name, value in values.items())]


def _useless(argument: str, taken: Mapping[str, str]) -> str:
    """Why a setting changes nothing beside what was taken; empty if it does."""
    key = argument.partition("=")[0].lstrip("+~")
    if "network" in taken and key.startswith("network."):
        return f"network={taken['network']} has its own shapes; others are had by import path (module:callable)"
    if "board" in taken and key.startswith("board."):
        return f"board={taken['board']} is taken as it is; write a YAML file of your own"
    if "precision" in taken and (key == "baselines" or key.partition(".")[0] == "quant"):
        return f"precision={taken['precision']} says all bits"
    return ""


def cost(cfg: Config, arguments: CostArguments | None = None) -> None:
    """Prints what precisions of a network cost on boards; with `out` also JSON, CSV, block-RAM map and roofline.

    One combination of precision and board is printed layer by layer, several as one table.

    Args:
        cfg: Network, board and precisions, where `arguments` names no others.
        arguments: What is asked beside it.

    Raises:
        ConfigError: A network or board is unknown, a file is missing or of another form, `min_fps` is no number >= 0,
            there is no precision, a setting has no effect, or `out` cannot be written.
        TraceError: The network cannot be mapped to hardware.
        BudgetError: A single combination does not fit or is too slow.
    """
    arguments = arguments or CostArguments()
    if arguments.refused:
        raise ConfigError(arguments.refused[0])
    has_precision = bool(cfg.baselines) or arguments.precision is not None
    require(has_precision, "baselines", cfg.baselines, "at least one number of bits, or precision=<file>")
    min_fps = _frame_rate(arguments.min_fps)
    boards = [_board(name) for name in arguments.boards] or [cfg.board.to_board()]
    network = _network(cfg, arguments.network)
    precisions = _precisions(cfg, network, arguments.precision)
    if arguments.out is not None:
        _check_out(arguments.out)
    console = Console() if sys.stdout.isatty() else Console(width=WIDE)
    if len(boards) == len(precisions) == 1:
        ((name, config),) = precisions.items()
        found = [(name, boards[0], _best_report(network, config, boards[0], min_fps))]
        console.print(_described(network), highlight=False, markup=False)
        console.print(cost_table(found[0][2], boards[0]))
        console.print(memory_table(found[0][2]))
    else:
        found, refused = [], []
        for board in boards:
            for name, config in precisions.items():
                try:
                    found.append((name, board, _best_report(network, config, board, min_fps)))
                except BudgetError as error:
                    refused.append(f"{name} on {board.name}: {error}")
        console.print(sweep_table(network, found))
        for line in refused:
            console.print(line, highlight=False, markup=False)
    if min_fps == 0 and any(_has_shared_engine(report) for _, _, report in found):
        console.print("schedules of fewest off-chip bits; min_fps=<frames/s> asks for faster ones", markup=False)
    if arguments.out is not None:
        _write(arguments.out, found)
        console.print(f"written: {arguments.out}", highlight=False, markup=False)


def _has_shared_engine(report: CostReport) -> bool:
    return any(row.macs and not DataFlow(row.data_flow).is_pipelined for row in report.layers)


def _frame_rate(typed: str) -> float:
    expected = "a number of frames per second >= 0; 0 for any"
    try:
        number = float(typed)
    except ValueError as error:
        raise ConfigError(f"min_fps={typed}, expected {expected}") from error
    require(math.isfinite(number) and number >= 0, "min_fps", number, expected)
    return number


def _board(name: str) -> Board:
    try:
        return hwmodel.load_board(name)
    except BoardError as error:
        raise ConfigError(f"board={name}: {error}") from error


def _check_out(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"out={folder} cannot be written: {error.strerror or error}; choose another folder with out=<folder>"
        ) from error


def _best_report(network: NetworkSpec, config: NetworkConfig, board: Board, min_fps: float) -> CostReport:
    return hwmodel.estimate(network, config, board, hwmodel.schedule(network, config, board, min_fps))


def _network(cfg: Config, name: str | None) -> NetworkSpec:
    if name is not None and name.endswith(".onnx"):
        from qat.onnx_network import load_onnx_network  # only who reads such a file needs the package onnx

        return load_onnx_network(Path(name))
    if name is not None:
        try:
            return hwmodel.load_network(name)
        except SpecError as error:
            choices = ", ".join(sorted(path.stem for path in (CONF_FOLDER / "network").glob("*.yaml")))
            raise ConfigError(
                f"network={name}: {error}; choices of conf/network are {choices}; others are given by import path "
                "(module:callable) or as an ONNX file (<file>.onnx)"
            ) from error
    from qat.graph import trace  # a table needs no torch, and no network needs here what trains it
    from qat.models import build_network

    channels, rows, columns = cfg.network.input_shape
    model = build_network(cfg.network, cfg.seed)
    try:
        traced = trace(model, (channels, rows, columns))
    except TraceError as error:
        try:
            traced = trace(model.eval(), (channels, rows, columns))  # without branches that only training has
        except TraceError:
            raise error from None
    return replace(traced, name=cfg.network.name)  # ResNet-18 and -50 are of one class


def _described(network: NetworkSpec) -> str:
    shape = f"{network.input_channels} x {network.input_height} x {network.input_width}"
    return f"{network.name}, input {shape}: {network.total_weights:,} weights, {network.total_macs / 1e9:.3f} GMAC"


def _precisions(cfg: Config, network: NetworkSpec, file: Path | None) -> dict[str, NetworkConfig]:
    if file is None:
        return {f"{bits} bit": uniform_of(cfg.quant, network, bits) for bits in cfg.baselines}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"precision={file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"precision={file}: is not JSON: {error}") from error
    try:
        config = NetworkConfig.from_dict(values)
        config.check_matches(network)
    except SpecError as error:
        raise ConfigError(f"precision={file}: {error}") from error
    return {file.stem: config}


def memory_table(report: CostReport) -> Table:
    """Memories on chip by purpose."""
    table = Table(title="memories on chip")
    for heading in ("purpose", "memories", "KiB", "RAMB18", "UltraRAM", "LUT"):
        table.add_column(heading, justify="left" if heading == "purpose" else "right")
    for purpose, count in Counter(memory.purpose for memory in report.memories).items():
        rows = [memory for memory in report.memories if memory.purpose == purpose]
        kib = sum(memory.depth * memory.width for memory in rows) / 8192
        used = (sum(getattr(memory, name) for memory in rows) for name in ("bram18", "uram", "lutram_luts"))
        table.add_row(purpose, str(count), f"{kib:.1f}", *(f"{number:,}" for number in used))
    return table


def sweep_table(network: NetworkSpec, found: Sequence[tuple[str, Board, CostReport]]) -> Table:
    """One row per board and precision."""
    table = Table(title=escape(_described(network)))
    headings = ("board", "weights", "bits/weight", "RAMB18", "UltraRAM", "DSP", "LUT", "off-chip KiB", "frames/s")
    for heading in (*headings, "latency ms", "GOP/s", "used most"):
        table.add_column(heading, justify="left" if heading in ("board", "weights", "used most") else "right")
    for name, board, report in found:
        used = (f"{getattr(report, n):,} / {getattr(board, n):,}" for n in ("bram18", "uram", "dsp", "lut"))
        speed = (f"{report.fps:,.1f}", f"{1e3 * report.latency_s:.3f}", f"{report.gops:,.0f}")
        offchip = f"{report.offchip_bits / 8192:,.1f}"
        table.add_row(
            escape(board.name), escape(name), f"{report.bits_per_weight:.2f}", *used, offchip, *speed, report.binding
        )
    return table


def roofline(report: CostReport, board: Board) -> Figure:
    """Speed against operations per byte that crosses the chip's border, under the roofs of array and DRAM.

    The roof of the array is what all its multipliers do if none ever waits; two operations per multiply-accumulate.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained", dpi=120)
    axes = figure.subplots()
    peak = 2 * report.multipliers * board.clock_hz / 1e9
    operations = 2 * report.total_macs
    intensity, baseline = (8 * operations / bits for bits in (report.offchip_bits, report.baseline_offchip_bits))
    low, high = min(baseline, intensity) / 10, max(baseline, intensity) * 10
    ridge = peak * 1e9 / board.dram_bytes_per_s
    points = sorted({low, ridge, high})
    axes.plot(points, [min(peak, x * board.dram_bytes_per_s / 1e9) for x in points], color=plots.GREY)
    axes.axvline(baseline, color=plots.ORANGE, linestyle="--", linewidth=1, label="layer by layer")
    axes.plot([intensity], [report.gops], "o", color=plots.BLUE, label=f"this schedule: {report.fps:,.0f} frames/s")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per off-chip byte")
    axes.set_ylabel("GOP/s")
    axes.set_title(f"{report.network} on {report.board}: array {peak:,.0f} GOP/s", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _write(folder: Path, found: Sequence[tuple[str, Board, CostReport]]) -> None:
    rows, totals = [], []
    for name, board, report in found:
        # Names are anybody's: no part of them leads out of the folder.
        stem = re.sub(r"[^\w.=,+-]+", "_", f"{report.network}_{board.name}_{name.replace(' ', '')}")
        write_text(folder / f"{stem}.json", json.dumps(report.to_dict(), indent=1) + "\n")
        values = {key: value for key, value in report.to_dict().items() if key not in ("version", "layers", "memories")}
        totals.append({"network": report.network, "board": board.name, "precision": name, **values})
        rows += [{"board": board.name, "precision": name, **asdict(layer)} for layer in report.layers]
        for kind, figure in (("bram", plots.memory_map(report, board.bram18)), ("roofline", roofline(report, board))):
            image = io.BytesIO()
            figure.savefig(image, format="png")
            write_bytes(folder / f"{stem}_{kind}.png", image.getvalue())
    write_rows(folder / "layers", rows)
    write_rows(folder / "totals", totals)
