"""The cost script: what it is asked, what it prints and writes."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hwmodel import (
    BudgetError,
    CostReport,
    board_names,
    estimate,
    load_board,
    load_network,
    schedule,
    uniform,
)
from qat.compose import compose_config
from qat.costing import CostArguments, cost, memory_table, roofline, split_arguments, sweep_table
from qat.errors import ConfigError, TraceError
from qat.report import cost_table, plots

ROOT = Path(__file__).resolve().parents[2]


def test_arguments_are_split() -> None:
    split = split_arguments(["network=resnet50", "board=vc707", "baselines=[4]", "out=here"])
    assert split == (CostArguments("resnet50", out=Path("here")), ["board=vc707", "baselines=[4]"])
    assert split_arguments(["network=digits_resnet"]) == (CostArguments(), ["network=digits_resnet"])
    assert split_arguments(["board=vc707,zcu104"])[0].boards == ("vc707", "zcu104")
    assert split_arguments(["board=[vc707,my.yaml]"])[0].boards == ("vc707", "my.yaml")
    assert split_arguments(["board=all"])[0].boards == board_names()
    assert split_arguments(["network=net.onnx", "precision=c.json"])[0] == CostArguments("net.onnx", (), Path("c.json"))


def test_activation_bits_of_single_layers_are_counted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rule = "quant.layers=[{pattern: 'layer3*', act_bit_width: 2}]"
    arguments, rest = split_arguments(["network=resnet20", "board=zcu102", "baselines=[4]", f"out={tmp_path}", rule])
    cost(compose_config(rest), arguments)
    (written,) = tmp_path.glob("resnet20_*.json")
    layers = {layer["name"]: layer["act_bit_width"] for layer in json.loads(written.read_text())["layers"]}
    assert layers["layer3.1.conv2"] == 2 and layers["layer2.1.conv2"] == 4


def test_frame_rate_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    network, board = load_network("yolov2_tiny_voc"), load_board("pynq_z2")
    arguments, rest = split_arguments(["network=yolov2_tiny_voc", "baselines=[4]", "min_fps=5"])
    cost(compose_config(rest), arguments)
    shown = capsys.readouterr().out
    config = uniform(network, 4, 4)
    report = estimate(network, config, board, schedule(network, config, board, 5))
    assert report.fps >= 5
    assert f"off chip {report.offchip_bits / 8192:.1f} KiB per frame" in shown
    with pytest.raises(BudgetError, match="min_fps=500 needs an interval of at most 200000 cycles, the fastest"):
        cost(compose_config(rest), replace(arguments, min_fps="500"))
    cost(compose_config(rest), replace(arguments, min_fps="500", boards=("pynq_z2", "zcu102")))
    assert "4 bit on pynq_z2: network 'yolov2_tiny_voc' on board 'pynq_z2': min_fps=500" in capsys.readouterr().out
    for typed, shown in (("many", "many"), ("-3", "-3.0"), ("nan", "nan"), ("inf", "inf")):
        expected = f"min_fps={shown}, expected a number of frames per second >= 0; 0 for any"
        with pytest.raises(ConfigError, match=expected):
            cost(compose_config(rest), replace(arguments, min_fps=typed))


def test_import_path_becomes_a_network() -> None:
    arguments, rest = split_arguments(["network=torchvision.models:resnet18", "network.input_shape=[3,64,64]"])
    config = compose_config(rest)
    assert arguments == CostArguments()
    assert (config.network.factory, config.network.name) == ("torchvision.models:resnet18", "resnet18")
    assert list(config.network.input_shape) == [3, 64, 64]


@pytest.mark.parametrize(
    ("asked", "shape"),
    [
        (["network=ssdlite320"], [3, 320, 320]),
        (["network=nets:Gray", "network.input_shape=[1,28,28]"], [1, 28, 28]),
        (["network=nets:Four", "network.input_shape=[4,16,16]"], [4, 16, 16]),
        (["experiment=bccd_yolo"], [3, 240, 320]),
        (["network=digits_yolo", "data=digit_scenes"], [1, 96, 96]),
    ],
)
def test_networks_need_no_images(asked: list[str], shape: list[int]) -> None:
    arguments, rest = split_arguments(asked)
    assert arguments == CostArguments()
    assert list(compose_config(rest).network.input_shape) == shape


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["network=resnet50", "network.input_shape=[3,512,512]"], "network.input_shape=.* no effect: network=resnet50"),
        (["network=resnet20", "board=vc707,zcu104", "board.bram18=9"], "board.bram18=9 has no effect: board=vc707,z"),
        (["network=resnet20", "precision=c.json", "baselines=[4]"], "baselines=.* no effect: precision=c.json says"),
        (["network=resnet20", "precision=c.json", "quant=a8"], "quant=a8 has no effect: precision=c.json says"),
        (["network=resnet20", "out="], "out= has no value"),
        (["network="], "network= has no value"),
        (["network=resnet20", "baselines=[]"], r"baselines=\[\], expected at least one number of bits, or precision="),
    ],
)
def test_what_would_change_nothing_is_refused(asked: list[str], message: str) -> None:
    arguments, rest = split_arguments(asked)
    with pytest.raises(ConfigError, match=message):
        cost(compose_config(rest), arguments)


def test_block_ram_map_shows_the_layers_that_have_any() -> None:
    network, board = load_network("yolov2_tiny_voc"), load_board("zcu104")
    report = estimate(network, uniform(network, 4, 4), board)
    owners = [memory.owner for memory in report.memories if memory.bram18]
    assert set(owners) < {memory.owner for memory in report.memories}
    figure = plots.memory_map(report, board.bram18)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == list(dict.fromkeys(owners))


def test_lists_of_boards() -> None:
    assert split_arguments(["board=vc707, zcu104,,vc707"])[0].boards == ("vc707", "zcu104")
    assert split_arguments(["board=all,my.yaml"])[0].boards == (*board_names(), "my.yaml")


def test_names_are_shown_as_they_are_and_stay_in_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "conf" / "board" / "zcu102.yaml").read_text()
    (tmp_path / "odd.yaml").write_text(text.replace("name: zcu102", 'name: "a/../../b [/]"'))
    file = tmp_path / "odd.yaml"
    cost(compose_config(["baselines=[4]"]), CostArguments("resnet20", (str(file),), out=tmp_path / "out"))
    cost(compose_config(["baselines=[4,8]"]), CostArguments("resnet20", (str(file),)))
    assert capsys.readouterr().out.count("a/../../b [/]") == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd.yaml", "out"]
    assert (tmp_path / "out" / "resnet20_a_.._.._b__4bit.json").is_file()


def test_totals_are_written_too_and_slow_schedules_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cost(compose_config(["baselines=[4]"]), CostArguments("resnet18", ("zcu102", "u250"), out=tmp_path))
    with (tmp_path / "totals.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    network = load_network("resnet18")
    report = estimate(network, uniform(network, 4, 4), load_board("u250"))
    assert [(row["network"], row["board"], row["precision"]) for row in rows][1] == ("resnet18", "u250", "4 bit")
    assert (float(rows[1]["fps"]), int(rows[1]["dsp"])) == (report.fps, report.dsp)
    assert "min_fps=<frames/s> asks for faster ones" in capsys.readouterr().out
    cost(compose_config(["baselines=[4]"]), CostArguments("resnet18", ("u250",)))
    assert "min_fps=" not in capsys.readouterr().out  # a pipeline is as fast as it can be


BRANCHED = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.head, self.side = nn.Conv2d(8, num_classes, 1), nn.Conv2d(8, num_classes, 1)

    def forward(self, x):
        x = self.stem(x)
        return (self.head(x), self.side(x).logsumexp(1)) if self.training else self.head(x)

class Bad(Net):
    def forward(self, x):
        return self.stem(x).erf() if self.training else self.stem(x).cumsum(1)
"""


def test_branches_that_only_training_has_cost_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "branched.py").write_text(BRANCHED)
    asked = [f"network.path={tmp_path}", "network.input_shape=[3,16,20]", "network.num_classes=5", "baselines=[4]"]
    arguments, rest = split_arguments(["network=branched:Net", *asked])
    cost(compose_config(rest), arguments)
    assert "Net, input 3 x 16 x 20: 256 weights, 0.000 GMAC" in capsys.readouterr().out
    arguments, rest = split_arguments(["network=branched:Bad", *asked])
    with pytest.raises(TraceError, match="'erf'"):
        cost(compose_config(rest), arguments)


def test_networks_are_traced_without_what_trains_them() -> None:
    command = [sys.executable, "scripts/cost.py", "network=squeezenet1_1", "baselines=[4]", "board=zcu102"]
    code = "import sys, runpy; sys.argv = sys.argv[1:]\ntry: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    code += "except SystemExit: pass\nprint([name for name in ('pytorch_lightning', 'botorch') if name in sys.modules])"
    done = subprocess.run([command[0], "-c", code, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "squeezenet1_1 on zcu102" in done.stdout


def test_one_combination_is_printed_layer_by_layer_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = compose_config(["board=zcu102", "baselines=[4]", "quant.act_bit_width=4"])
    cost(config, CostArguments("resnet20", out=tmp_path))
    shown = capsys.readouterr().out
    report = estimate(load_network("resnet20"), uniform(load_network("resnet20"), 4, 4), load_board("zcu102"))
    assert "resnet20 on zcu102" in shown
    assert f"RAMB18 {report.bram18} of 1824" in shown
    assert f"used most: {report.binding}" in shown
    assert "line_buffer" in shown
    stem = "resnet20_zcu102_4bit"
    assert CostReport.from_dict(json.loads((tmp_path / f"{stem}.json").read_text())) == report
    with (tmp_path / "layers.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["name"] for row in rows] == [layer.name for layer in report.layers]
    assert rows[0]["board"] == "zcu102"
    for kind in ("bram", "roofline"):
        assert (tmp_path / f"{stem}_{kind}.png").read_bytes().startswith(b"\x89PNG")


def test_sweep_has_a_row_per_board_and_says_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    small = ROOT / "conf" / "board" / "pynq_z2.yaml"
    cost(compose_config(["baselines=[1,8]"]), CostArguments("resnet20", ("vc707", str(small))))
    shown = capsys.readouterr().out
    assert shown.count("vc707") == shown.count("pynq_z2") == 2
    assert "268,336 weights" in shown


def test_precision_of_a_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(uniform(load_network("resnet20"), 3, 4).to_dict()))
    cost(compose_config([]), CostArguments("resnet20", precision=file))
    assert "resnet20 on pynq_z2" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="precision=.*missing.json: cannot be read: No such file"):
        cost(compose_config([]), CostArguments("resnet20", precision=tmp_path / "missing.json"))
    file.write_text("{")
    with pytest.raises(ConfigError, match="config.json: is not JSON"):
        cost(compose_config([]), CostArguments("resnet20", precision=file))
    for text, message in (("null", "is NoneType, expected fields"), ("[1]", "is list, expected fields")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=f"config.json: a network configuration {message}"):
            cost(compose_config([]), CostArguments("resnet20", precision=file))
    file.write_text(json.dumps(uniform(load_network("resnet18"), 3, 4).to_dict()))
    with pytest.raises(ConfigError, match="config.json: configuration does not match network 'resnet20': missing"):
        cost(compose_config([]), CostArguments("resnet20", precision=file))


def test_unknown_networks_and_boards_are_settings() -> None:
    message = "network=resnet21: network 'resnet21' has no layer table.* did you mean resnet20.*digits_resnet.*onnx"
    with pytest.raises(ConfigError, match=message):
        cost(compose_config([]), CostArguments("resnet21"))
    with pytest.raises(ConfigError, match="board=zcu999: board 'zcu999' is not listed; listed are"):
        cost(compose_config([]), CostArguments("resnet20", ("zcu102", "zcu999")))


def test_folder_that_cannot_be_written_is_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "x"
    with pytest.raises(ConfigError, match=f"out={folder} cannot be written: .*another folder with out=<folder>"):
        cost(compose_config([]), CostArguments("resnet20", out=folder))
    assert capsys.readouterr().out == ""


def test_tables_and_roofline_show_the_report() -> None:
    network, board = load_network("resnet20"), load_board("zcu102")
    report = estimate(network, uniform(network, 2, 4), board)
    assert memory_table(report).row_count == len({memory.purpose for memory in report.memories})
    assert sweep_table(network, [("2 bit", board, report)]).row_count == 1
    caption = str(cost_table(report, board).caption)
    assert f"({report.entropy_bound_bits / report.total_weights:.3f} with indices at their entropy)" in caption
    assert f"{report.gops:,.0f} GOP/s (2 per MAC), {100 * report.mac_efficiency:.0f} % of the arrays busy" in caption
    assert f"latency {1e3 * report.latency_s:.3f} ms" in caption
    assert f"energy {report.energy_rel:.3f} of 8 bits layer by layer" in caption
    (axes,) = roofline(report, board).axes
    roof, point = axes.get_lines()[0], axes.get_lines()[2]
    assert point.get_ydata()[0] == pytest.approx(report.gops)
    assert max(roof.get_ydata()) >= report.gops


def test_script_needs_no_torch_for_a_layer_table(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "cost.py"), "network=resnet20", "baselines=[1]"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "resnet20 on pynq_z2" in done.stdout
    assert list(tmp_path.iterdir()) == []
