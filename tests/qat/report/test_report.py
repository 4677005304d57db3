"""Result rows, tables, plots and the page, from plain values."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from hwmodel import estimate, load_board, load_network, uniform
from qat.errors import RunFolderError
from qat.report import ReportData, Result, cost_table, markdown, result_table, write_report
from qat.report.plots import calibration, dominated_area

MIX = Result(
    name="mix_16x",
    kind="mix",
    images=500,
    score="accuracy",
    float_score=0.91,
    quantized_score=0.9,
    integer_score=0.898,
    lost=10,
    won=4,
    differing_codes=0,
    stored_bits=540_000,
    bits_per_weight=2.0,
    compression=16.0,
    bound_compression=16.5,
    bram18=70,
    bram18_available=280,
    offchip_bits=8192,
    baseline_offchip_bits=81920,
    fps=1234.5,
)
UNIFORM = replace(
    MIX,
    name="uniform_w2",
    kind="uniform",
    integer_score=None,
    lost=None,
    won=None,
    differing_codes=None,
    compression=14.7,
)


def _text(table: object, width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_plain_form_round_trip() -> None:
    assert Result.from_dict(MIX.to_dict()) == MIX


def test_a_result_of_another_version_is_refused() -> None:
    data = MIX.to_dict()
    data["colour"] = data.pop("fps")
    with pytest.raises(RunFolderError, match=r"missing \['fps'\], unknown \['colour'\]"):
        Result.from_dict(data)


def test_table_fits_a_narrow_terminal_and_shows_every_figure() -> None:
    text = _text(result_table([MIX, UNIFORM], "title"), 60)
    for figure in ("91.00 %", "90.00 %", "89.80 %", "10 / 4 of 500", "16.00x", "70 of 280", "1.0 KiB", "10.0 KiB"):
        assert figure in text
    assert text.count("not verified") == 3  # accuracy, images, codes
    assert "…" not in text


def test_markdown_has_a_column_per_network() -> None:
    lines = markdown([MIX, UNIFORM]).splitlines()
    assert lines[0] == "|  | mix_16x | uniform_w2 |"
    assert {line.count("|") for line in lines} == {4}
    assert "| compression | 16.00x | 14.70x |" in lines


def test_cost_table_names_every_layer_and_the_totals() -> None:
    board = load_board("pynq_z2")
    network = load_network("resnet20")
    report = estimate(network, uniform(network, 2, 4), board)
    text = _text(cost_table(report, board), 200)
    for layer in network.weighted:
        assert layer.name in text
    assert f"RAMB18 {report.bram18} of {board.bram18}" in text


def test_page_stands_alone(tmp_path: Path) -> None:
    network = load_network("resnet20")
    report = estimate(network, uniform(network, 2, 4), load_board("zcu102"))
    data = ReportData(
        title="net on <images>",
        board="zcu102",
        bram18_available=1824,
        results=[MIX, UNIFORM],
        trials=[(1, "16x", 16.2, 0.8), (2, "16x", 16.4, 0.82)],
        fronts={"bram18": [(40, 0.8), (30, 0.82)], "fps": [(90, 0.8), (80, 0.82)]},
        costs={"mix_16x": report, "uniform_w2": report},
        sensitivity={layer.name: 0.1 for layer in network.weighted},
        curves={"mix_16x": [(0, 0.7), (1, 0.8)], "uniform_w2": []},
        notes=["read < with care"],
        commands=[("this run", "python scripts/search.py")],
        environment={"date": "today"},
    )
    page = write_report(data, tmp_path).read_text(encoding="utf-8")
    assert "net on &lt;images&gt;" in page
    assert "read &lt; with care" in page
    assert "http" not in page  # readable without a network
    pictures = {path.name for path in (tmp_path / "plots").iterdir()}
    assert {"front.png", "search.png", "training.png", "precision_mix_16x.png", "front_fps.png"} <= pictures
    assert "precision_uniform_w2.png" not in pictures
    assert page.count("data:image/png;base64,") == len(pictures)
    assert not list(tmp_path.rglob("*.tmp"))


def test_page_of_a_run_without_trials(tmp_path: Path) -> None:
    page = write_report(ReportData("net", "zcu102", 1824, [UNIFORM]), tmp_path).read_text(encoding="utf-8")
    assert "not verified" in page


def test_area_under_the_front() -> None:
    assert dominated_area([]) == 0
    assert dominated_area([(3.0, 0.5), (2.0, 0.75), (2.0, 0.5)]) == pytest.approx(2 * 0.5 + 1 * 0.25)
    assert dominated_area([(3.0, 0.5), (2.5, 0.4)]) == pytest.approx(1.0)  # a dominated point adds nothing


def test_calibration_counts_what_lies_inside_its_bar() -> None:
    figure = calibration([(0.90, 0.91, 0.02), (0.80, 0.85, 0.01), (0.70, 0.70, 0.01), (0.60, 0.605, 0.01)])
    assert figure.axes[0].get_title() == "median error 0.75 points;\n75% within one standard deviation (ideal: 68 %)"
