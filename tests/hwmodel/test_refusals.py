"""What makes no sense is refused with layer, field and value, whoever is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwmodel import (
    Board,
    BoardError,
    ConfigArrays,
    CostReport,
    CostTable,
    HwModelError,
    LayerConfig,
    LayerSchedule,
    LayerSpec,
    NetworkConfig,
    NetworkSpec,
    Op,
    Schedule,
    SpecError,
    estimate,
    estimate_arrays,
    estimate_many,
    load_board,
    load_network,
    map_memory,
    schedule,
    uniform,
)

NETWORK = load_network("resnet20")
BOARD = load_board("zcu102")
CONFIG = uniform(NETWORK, 4, 4)
SCHEDULE = schedule(NETWORK, CONFIG, BOARD)
CHOICES = {layer.name: [LayerConfig(4, 4), LayerConfig(2, 4)] for layer in NETWORK.weighted}
LAYER: dict[str, Any] = {
    "name": "a",
    "op": Op.CONV,
    "inputs": ("input",),
    **{"in_channels": 3, "in_height": 8, "in_width": 8, "out_channels": 4, "out_height": 8, "out_width": 8},
}


@pytest.mark.parametrize("name", [None, 3, float("nan"), ["resnet20"], {}, b"resnet20", "../resnet20", ""])
def test_names_of_networks_and_boards(name: Any) -> None:
    with pytest.raises(SpecError, match=r"^network .*(expected a name|has no layer table)"):
        load_network(name)
    with pytest.raises(BoardError, match=r"^board .*(expected a name|is not listed)"):
        load_board(name)


@pytest.mark.parametrize(("name", "meant"), [("ResNet-50", "resnet50"), ("YOLOv3", "yolov3"), ("VGG16", "vgg16")])
def test_other_spellings_are_hinted_at(name: str, meant: str) -> None:
    with pytest.raises(SpecError, match=f"did you mean {meant}\\?"):
        load_network(name)


@pytest.mark.parametrize("value", [[16], {}, np.array([16, 16]), np.int64(16), 16.0, float("inf"), -1, "16", None])
def test_memories(value: Any) -> None:
    for depth, width in ((16, 8), (8, 16)):
        map_memory(depth, width, "7series")  # equals some of the values, and is kept
    for depth, width in ((value, 8), (8, value)):
        with pytest.raises(SpecError, match="^memory of depth=.*, width=.*: expected integers"):
            map_memory(depth, width, "7series")
    for family, profile in ((value, "vivado"), ("7series", value)):
        with pytest.raises(SpecError, match="expected one of|one of .* and one of"):
            map_memory(8, 8, family, profile)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": (3,)}, r"layer 'a': inputs=\(3,\), expected names of layers"),
        ({"weights_of": 3}, "layer 'a': weights_of=3, expected a name, or None"),
        ({"in_channels": 10**10}, "layer 'a': in_channels=10000000000, expected at most 4,294,967,296"),
        ({"kernel_size": (1, 10**10)}, r"layer 'a': kernel_size=\(1, 10000000000\), expected at most"),
        (
            {"in_height": 2**20, "in_width": 2**20, "out_height": 2**20, "out_width": 2**20},
            "layer 'a': in_channels x in_height x in_width=3,298,534,883,328, expected at most",
        ),
        ({"in_channels": 2**21, "out_channels": 2**21}, "layer 'a': weights=4,398,046,511,104, expected at most"),
    ],
)
def test_layers(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        LayerSpec(**{**LAYER, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 3}, "network 3: name=3, expected a string"),
        ({"layers": 3}, "network 'n': layers=3, expected a list of LayerSpecs"),
        ({"layers": ["a"]}, r"network 'n': layers=\['a'\], expected a list of LayerSpecs"),
        ({"outputs": None}, "network 'n': outputs=None, expected a list of names of layers"),
        ({"outputs": [[]]}, r"network 'n': outputs=\[\[\]\], expected a list of names"),
    ],
)
def test_networks(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        NetworkSpec(
            **{
                "name": "n",
                "input_channels": 3,
                "input_height": 8,
                "input_width": 8,
                "layers": (LayerSpec(**LAYER),),
                **changes,
            }
        )


def test_work_beyond_64_bits() -> None:
    size = {"in_channels": 2**16, "out_channels": 2**16, "in_height": 2**12, "in_width": 2**12}
    layer = LayerSpec(**{**LAYER, **size, "out_height": 2**12, "out_width": 2**12})
    with pytest.raises(SpecError, match=r"network 'n': total_macs=\d+, expected at most 72,"):
        NetworkSpec("n", 2**16, 2**12, 2**12, (layer, replace(layer, name="b", inputs=("a",))))


@pytest.mark.parametrize("layers", [None, 3, "abc", [("a",)], [("a", 3)], {"a": 3}, [([], LayerConfig(4, 4))]])
def test_configurations(layers: Any) -> None:
    with pytest.raises(
        SpecError, match="expected (pairs of a layer's name and its|a layer's name and its) LayerConfig"
    ):
        NetworkConfig(layers)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda layer: Schedule("n", 3), "layers=3, expected a list of LayerSchedules"),
        (lambda layer: Schedule("n", ["a"]), r"layers=\['a'\], expected a list of LayerSchedules"),
        (lambda layer: Schedule("n", (layer,), 8), "host=8, expected a HostInterface"),
        (lambda layer: replace(layer, name=3), "schedule of layer 3: name=3, expected a string"),
        (lambda layer: replace(layer, pe=10**9), "schedule of layer 'a': pe=1000000000, expected at most"),
    ],
)
def test_schedules(make: Callable[[LayerSchedule], object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make(LayerSchedule("a", "frame", 1, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [NetworkConfig, Schedule, CostReport, NetworkSpec, Board])
@pytest.mark.parametrize("data", [None, 3, "x", []])
def test_plain_forms(kind: Any, data: object) -> None:
    with pytest.raises(HwModelError, match="NoneType|int|str|list|subscriptable"):
        kind.from_dict(data)


@pytest.mark.parametrize("field", ["bram18", "uram", "dsp", "lut", "ff", "dram_bytes_per_s", "clock_hz"])
def test_boards_beyond_any_device(field: str) -> None:
    with pytest.raises(BoardError, match=f"board 'zcu102': {field}=10{{18}}, expected at most 1,000,000,000,000,000"):
        replace(BOARD, **{field: 10**18})


def test_boards_whose_frames_take_more_than_64_bits_of_cycles() -> None:
    expected = "dram_bytes_per_s=1, expected at least 48,829, a byte in 4,096 cycles of clock_hz=200,000,000"
    with pytest.raises(BoardError, match=f"board 'zcu102': {expected}"):
        replace(BOARD, dram_bytes_per_s=1)


def test_a_field_of_a_board_is_given_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    lines = [f"{name}: {value!r}" for name, value in asdict(BOARD).items()]
    path.write_text("\n".join([*lines, "bram18: 5", "lut: 5"]))
    with pytest.raises(BoardError, match="mine.yaml: bram18, lut given twice, expected each field once"):
        load_board(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "resnet20"}, "network is 'resnet20', expected a NetworkSpec: load_network reads one"),
        ({"config": None}, "config is None, expected a NetworkConfig: uniform makes one"),
        ({"config": {}}, "config is a dict, expected a NetworkConfig"),
        ({"board": "zcu102"}, "board is 'zcu102', expected a Board: load_board reads one"),
        ({"schedule": 3}, r"schedule is 3, expected a Schedule: schedule\(\) makes one"),
    ],
)
def test_estimates(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        estimate(**{"network": NETWORK, "config": CONFIG, "board": BOARD, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "resnet20"}, "network is 'resnet20', expected a NetworkSpec"),
        ({"board": "zcu102"}, "board is 'zcu102', expected a Board"),
        ({"choices": None}, "choices is None, expected a Mapping: configurations by layer name"),
        ({"choices": {**CHOICES, "conv1": [3]}}, r"choices of layer 'conv1': \[3\], expected a list of LayerConfigs"),
        ({"choices": {**CHOICES, "conv1": LayerConfig(4, 4)}}, "choices of layer 'conv1': LayerConfig"),
        ({"choices": {**CHOICES, "conv1": "abc"}}, "choices of layer 'conv1': 'abc', expected a list"),
        ({"schedule": {}}, "schedule is a dict, expected a Schedule"),
    ],
)
def test_tables(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        CostTable(**{"network": NETWORK, "board": BOARD, "choices": CHOICES, **changes})


def test_indices_of_tables() -> None:
    table = CostTable(NETWORK, BOARD, CHOICES, SCHEDULE)
    layers = len(table.layers)
    assert table.config([1] * layers) == table.config(np.ones(layers, dtype=np.int64))
    for wrong in ([0], [2] * layers, [-1] * layers, [0.5] * layers, ["x"] * layers):
        with pytest.raises(SpecError, match="^indices"):
            table.config(wrong)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"^indices=.*, expected integers of shape \(n, 20\)"):
        table.evaluate([[0] * layers, [0]])
    for share in (-0.1, 1.1, float("nan"), "x", None):
        with pytest.raises(SpecError, match="^share=.*, expected a number in 0..1"):
            table.at_share(share)  # type: ignore[arg-type]


ARRAYS = ConfigArrays(tuple(CHOICES), 4, 4)


@pytest.mark.parametrize("layers", [None, 3, "conv1", (3,), [[]]])
def test_arrays_name_layers(layers: Any) -> None:
    with pytest.raises(SpecError, match="^layers=.*, expected names of layers"):
        ConfigArrays(layers, 4, 4)


@pytest.mark.parametrize("field", ["weight_format", "granularity"])
@pytest.mark.parametrize("value", [None, {}, "x", -1])
def test_arrays_hold_kinds(field: str, value: Any) -> None:
    with pytest.raises(SpecError, match=f"layer 'conv1', configuration 0: {field}=.*, expected one of"):
        replace(ARRAYS, **{field: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "resnet20"}, "network is 'resnet20', expected a NetworkSpec"),
        ({"arrays": CONFIG}, "arrays is a NetworkConfig, expected a ConfigArrays"),
        ({"board": "zcu102"}, "board is 'zcu102', expected a Board"),
        ({"schedule": None}, "schedule is None, expected a Schedule"),
    ],
)
def test_estimates_of_arrays(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        estimate_arrays(**{"network": NETWORK, "arrays": ARRAYS, "board": BOARD, "schedule": SCHEDULE, **changes})


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        (None, "configs is None, expected an Iterable: NetworkConfigs"),
        (CONFIG, r"configs\[0\] is 'conv1', expected a NetworkConfig"),
        ([CONFIG, None], r"configs\[1\] is None, expected a NetworkConfig"),
    ],
)
def test_estimates_of_many(configs: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        estimate_many(NETWORK, configs, BOARD, SCHEDULE)


@pytest.mark.parametrize("network", ["resnet20", None])
def test_uniform_precision(network: Any) -> None:
    with pytest.raises(SpecError, match="expected a NetworkSpec: load_network reads one"):
        uniform(network, 4, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "resnet20"}, "network is 'resnet20', expected a NetworkSpec: load_network reads one"),
        ({"config": None}, "config is None, expected a NetworkConfig"),
        ({"board": "zcu102"}, "board is 'zcu102', expected a Board: load_board reads one"),
        ({"min_fps": 10**400}, "min_fps=10+, expected a finite number >= 0"),
        ({"min_fps": "fast"}, "min_fps='fast', expected a finite number >= 0"),
    ],
)
def test_what_is_scheduled(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        schedule(**{"network": NETWORK, "config": CONFIG, "board": BOARD, **changes})
