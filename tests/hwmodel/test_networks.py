"""Layer tables equal the published counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hwmodel import (
    CostTable,
    DataFlow,
    LayerSchedule,
    LayerSpec,
    NetworkConfig,
    NetworkSpec,
    Op,
    Schedule,
    SpecError,
    estimate,
    estimate_many,
    load_board,
    load_network,
    network_names,
    uniform,
)

# Weights without bias and batch norm, and MACs, of convolutions and fully connected layers.
# torchvision: `num_params` and `_ops` of its weight enums (torchvision.models, IMAGENET1K_V1), less batch norm and
#   biases (counted from the papers' tables: two per batch-norm channel, one per class or VGG layer).
# darknet: computed from pjreddie/darknet cfg/*.cfg at f6afaab, convolutions only.
# CIFAR ResNets: akamaster/pytorch_resnet_cifar10, 269,722 and 853,018 parameters, less batch norm and bias; MACs
#   computed from section 4.2 of the ResNet paper.
# RetinaNet: torchvision's COCO_V1, 151.54e9 multiply-accumulates at 800 x 800; biases: 256 of each of the pyramid's 8
#   convolutions and the heads' 8 hidden ones, 819 and 36 of the results.
# Sim-YOLO-v2: Nguyen et al. 2019, table IV; 17.18 GOP printed.
PUBLISHED = {
    "resnet18": (11_689_512 - 9_600 - 1_000, 1.814e9),
    "resnet50": (25_557_032 - 53_120 - 1_000, 4.089e9),
    "resnet152": (60_192_808 - 151_424 - 1_000, 11.514e9),
    "resnet20": (269_722 - 1_376 - 10, 40.55e6),
    "resnet56": (853_018 - 4_064 - 10, 125.49e6),
    "vgg16": (138_357_544 - 4_224 - 9_192, 15.47e9),
    "mobilenet_v2": (3_504_872 - 34_112 - 1_000, 0.3008e9),
    "darknet19": (20_826_976, 2.7910e9),
    "yolov2_voc": (50_634_592, 14.6802e9),
    "yolov2_tiny_voc": (15_855_536, 3.4855e9),
    "yolo_voc_2_0": (67_116_896, 17.4491e9),
    "yolov3": (61_895_776, 32.9320e9),
    "yolov3_tiny": (8_845_488, 2.7825e9),
    "retinanet_r50": (34_014_999 - 16 * 256 - 819 - 36, 151.54e9),
    "sim_yolo_v2_fpga": (14_688_096, 17.177e9 / 2),
}


def test_every_table_has_a_golden_count() -> None:
    assert set(network_names()) == set(PUBLISHED)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_counts_are_the_published_ones(name: str) -> None:
    network = load_network(name)
    weights, macs = PUBLISHED[name]
    assert network.name == name
    assert network.total_weights == weights
    assert network.total_macs == pytest.approx(macs, rel=1e-3)


def test_largest_maps_of_the_detectors() -> None:
    for name, channels in (("yolov2_voc", 32), ("yolov2_tiny_voc", 16), ("yolov3", 32)):
        first = load_network(name).layers[0]
        assert (first.out_channels, first.out_height, first.out_width) == (channels, 416, 416)


def test_output_shapes() -> None:
    shapes = {
        "yolov2_voc": [(125, 13)],
        "yolov3": [(255, 13), (255, 26), (255, 52)],
        "yolov3_tiny": [(255, 13), (255, 26)],
        "resnet152": [(1000, 1)],
        "mobilenet_v2": [(1000, 1)],
        "retinanet_r50": [(channels, size) for size in (100, 50, 25, 13, 7) for channels in (819, 36)],
    }
    for name, want in shapes.items():
        network = load_network(name)
        have = [network.by_name[output] for output in network.outputs]
        assert [(layer.out_channels, layer.out_height) for layer in have] == want


def test_unknown_network_names_the_known_ones() -> None:
    with pytest.raises(SpecError, match=r"network 'resnet19' has no layer table; there are .*resnet18"):
        load_network("resnet19")


def test_unknown_network_suggests_a_near_name() -> None:
    with pytest.raises(SpecError, match=r"; did you mean yolov2_tiny_voc\?$"):
        load_network("tiny_yolo_v2")
    with pytest.raises(SpecError, match=r"'yolov3_tiny'\]$"):
        load_network("alexnet")


CONV = {
    "name": "a",
    "op": "conv",
    "inputs": ("input",),
    "in_channels": 3,
    "in_height": 8,
    "in_width": 8,
    "out_channels": 4,
    "out_height": 8,
    "out_width": 8,
    "kernel_size": (3, 3),
    "padding": (1, 1),
}
VECTOR = {**CONV, "op": "linear", "kernel_size": (1, 1), "padding": (0, 0), "out_height": 1, "out_width": 1}
VECTOR |= {"in_height": 1, "in_width": 1}

REORG = LayerSpec("r", Op.REORG, ("input",), 3, 8, 8, 12, 4, 4, stride=(2, 2))
LOOKUP = {**CONV, "op": "lookup", "in_channels": 4, "kernel_size": (1, 1), "padding": (0, 0)}
SUBSAMPLE = {**LOOKUP, "op": "subsample", "stride": (2, 2), "out_height": 4, "out_width": 4}


@pytest.mark.parametrize(
    ("layer", "changes", "message"),
    [
        (CONV, {"in_channels": -3}, "in_channels=-3, expected an integer >= 1"),
        (CONV, {"in_height": -8}, "in_height=-8, expected an integer >= 1"),
        (CONV, {"in_channels": True}, "in_channels=True, expected an integer >= 1"),
        (CONV, {"kernel_size": 3}, "kernel_size=3, expected a list"),
        (CONV, {"inputs": "input"}, "inputs='input', expected a list"),
        (CONV, {"padding_end": 1}, "padding_end=1, expected a list"),
        (CONV, {"padding_end": (True, 0)}, r"padding_end=\(True, 0\), expected two integers >= 0"),
        (CONV, {"stride": (0, 1)}, r"stride=\(0, 1\), expected two integers >= 1"),
        (CONV, {"out_width": 7}, "out_width=7, expected 8"),
        (VECTOR, {"in_height": 7}, "in_height=7, expected 1 for op='linear'"),
        (VECTOR, {"kernel_size": (3, 3)}, r"kernel_size=\(3, 3\), expected \(1, 1\) for op='linear'"),
        (VECTOR, {"groups": 3}, "groups=3, expected 1 for op='linear'"),
        (VECTOR, {"stride": (2, 2)}, r"stride=\(2, 2\), expected \(1, 1\) for op='linear'"),
        (LOOKUP, {"stride": (2, 2)}, r"stride=\(2, 2\), expected \(1, 1\) for op='lookup'"),
        (LOOKUP, {"kernel_size": (5, 5)}, r"kernel_size=\(5, 5\), expected \(1, 1\) for op='lookup'"),
        (LOOKUP, {"padding": (1, 1)}, r"padding=\(1, 1\), expected \(0, 0\) for op='lookup'"),
        (LOOKUP, {"padding_end": (1, 1)}, r"padding_end=\(1, 1\), expected None for op='lookup'"),
        (SUBSAMPLE, {"dilation": (2, 2)}, r"dilation=\(2, 2\), expected \(1, 1\) for op='subsample'"),
        (SUBSAMPLE, {"out_channels": 2}, "out_channels=2, expected at least in_channels=4"),
        (SUBSAMPLE, {"first_channel": True}, "first_channel=True, expected 0..0"),
    ],
)
def test_wrong_layer_is_refused_by_name_field_and_value(
    layer: dict[str, object], changes: dict[str, object], message: str
) -> None:
    LayerSpec(**layer)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=f"layer 'a': {message}"):
        LayerSpec(**{**layer, **changes})  # type: ignore[arg-type]


def test_neighbours_that_do_not_match() -> None:
    first = LayerSpec(**CONV)  # type: ignore[arg-type]
    second = LayerSpec(**{**CONV, "name": "b", "inputs": ("a",), "in_channels": 5})  # type: ignore[arg-type]
    message = r"layer 'b': \(in_channels, in_height, in_width\)=\(5, 8, 8\), its producers give \{'a': \(4, 8, 8\)\}"
    with pytest.raises(SpecError, match=message):
        NetworkSpec("n", 3, 8, 8, (first, second))


@pytest.mark.parametrize("name", ["input", "dram", "frame engine", 3])
def test_names_that_mean_something_else_are_refused(name: object) -> None:
    with pytest.raises(SpecError, match=f"name={name!r}, expected"):
        LayerSpec(**{**CONV, "name": name})  # type: ignore[arg-type]


def test_a_gate_has_one_value_per_channel() -> None:
    first = LayerSpec(**CONV)  # type: ignore[arg-type]
    gate = LayerSpec("m", Op.MUL, ("a", "a"), 4, 8, 8, 4, 8, 8)
    with pytest.raises(SpecError, match=r"layer 'm': its gate 'a' is \(4, 8, 8\), expected \(4, 1, 1\)"):
        NetworkSpec("n", 3, 8, 8, (first, gate))


@pytest.mark.parametrize(
    "use",
    [
        lambda network, board, plan: uniform(network, 4, 4),
        lambda network, board, plan: estimate(network, NetworkConfig(()), board, plan),
        lambda network, board, plan: estimate(network, NetworkConfig(()), board),
        lambda network, board, plan: estimate_many(network, [NetworkConfig(())], board, plan),
        lambda network, board, plan: CostTable(network, board, {}, plan),
    ],
)
@pytest.mark.parametrize("layers", [(), (REORG,)])
def test_a_network_without_weights_is_refused(use: Callable[..., object], layers: tuple[LayerSpec, ...]) -> None:
    plan = Schedule("n", tuple(LayerSchedule(layer.name, DataFlow.FRAME, 1, 1) for layer in layers))
    with pytest.raises(SpecError, match="network 'n': no layer has weights; expected a convolution or a linear layer"):
        use(NetworkSpec("n", 3, 8, 8, layers), load_board("zcu102"), plan)


def test_input_shape_is_checked() -> None:
    with pytest.raises(SpecError, match="network 'n': input_channels=-3, expected an integer >= 1"):
        NetworkSpec("n", -3, 8, 8, ())


def test_other_names_in_use() -> None:
    assert load_network("tiny_yolov2") == load_network("yolov2_tiny_voc")
    assert load_network("yolov2") == load_network("yolov2_voc")


def test_reorg_turns_space_into_channels() -> None:
    layer = LayerSpec("r", Op.REORG, ("input",), 3, 8, 8, 12, 4, 4, stride=(2, 2))
    assert (layer.out_channels, layer.out_height, layer.out_width) == (12, 4, 4)
    with pytest.raises(SpecError, match=r"layer 'r': stride=\(3, 3\), expected divisors of the ifm's 8 rows"):
        LayerSpec("r", Op.REORG, ("input",), 3, 8, 8, 27, 2, 2, stride=(3, 3))
    with pytest.raises(SpecError, match="layer 'r': out_channels=3, expected 12"):
        LayerSpec("r", Op.REORG, ("input",), 3, 8, 8, 3, 4, 4, stride=(2, 2))


def test_networks_are_keys_that_differ_where_one_layer_does() -> None:
    def one_layer(size: int, pad: int) -> NetworkSpec:
        layer = LayerSpec("c", Op.CONV, ("input",), 3, 8, 8, 4, 8, 8, kernel_size=(size, size), padding=(pad, pad))
        return NetworkSpec("n", 3, 8, 8, (layer,))

    assert hash(one_layer(3, 1)) == hash(one_layer(3, 1))
    assert len({one_layer(1, 0), one_layer(3, 1), one_layer(3, 1)}) == 2
