"""The darknet family: tables against published counts, files that the tests write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwmodel import load_network
from qat.errors import CheckpointError, ConfigError
from qat.graph import trace
from qat.models import darknet_tables as darknet
from qat.models.darknet import Conv, Darknet, Detect, Pool, Route, Shortcut, Table
from qat.models.darknet_files import read_cfg, read_weights
from qat.models.darknet_tables import HEAD

# Parameters with batch norm and biases; of yolov3 and yolov3-tiny as ultralytics/yolov3 prints them ("61949149
# parameters", "8852366 parameters"), the others the sum of hwmodel's golden weights, two per batch-norm channel and
# one per channel of a head.
PARAMETERS = {
    "darknet19": (1000, 20_842_376),
    "yolov2_tiny_voc": (20, 15_861_773),
    "yolov2_voc": (20, 50_655_389),
    "sim_yolo_v2_fpga": (20, 14_699_549),
    "yolov3_tiny": (80, 8_852_366),
    "yolov3": (80, 61_949_149),
}

CFG = """
[net]
# a comment
batch=1
width=64
height=32
channels=3

[convolutional]
batch_normalize=1
filters=4
size=3
stride=1
pad=1
activation=leaky

[maxpool]
size=2
stride=2

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky

[convolutional]
batch_normalize=1
filters=4
size=1
activation=relu

[convolutional]
batch_normalize=1
filters=8
size=3
pad=1
activation=linear

[shortcut]
from=-3
activation=linear

[convolutional]
size=1
filters=14
activation=linear

[yolo]
mask = 1,2
anchors = 2,3, 10,13, 20,30
classes=2

[route]
layers=-3

[upsample]
stride=2

[route]
layers=-1, 1

[convolutional]
size=1
filters=7
activation=linear

[yolo]
mask = 0
anchors = 2,3, 10,13, 20,30
classes=2
"""


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_published_parameters(name: str) -> None:
    classes, parameters = PARAMETERS[name]
    model = getattr(darknet, name)(classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    table = load_network(name)
    assert [tuple(conv.weight.shape) for conv, _ in model.convolutions()] == [
        layer.weight_shape for layer in table.weighted
    ]


def test_maps_of_two_scales() -> None:
    outputs = darknet.yolov3_tiny(3).eval()(torch.zeros(2, 3, 64, 96))
    assert [tuple(output.shape) for output in outputs] == [(2, 24, 2, 3), (2, 24, 4, 6)]


def test_new_heads_see_nothing() -> None:
    model = darknet.digits_yolo(10).eval()
    (head,) = model.heads
    raw = head.split(model(torch.rand(1, 1, 96, 96)))
    assert raw.objectness_NAHW.sigmoid().max() < 0.05


def test_a_row_that_refers_to_nothing() -> None:
    with pytest.raises(ConfigError, match=r"network 't', row 1 \(Route\): refers to \['b'\], earlier rows.*\['a'\]"):
        Darknet(Table("t", (Conv(4, label="a"), Route(("b",)))), 2)
    with pytest.raises(ConfigError, match=r"row 1 \(Shortcut\): refers to \['x'\]"):
        Darknet(Table("t", (Conv(4), Shortcut("x"))), 2)


def test_a_head_without_its_convolution() -> None:
    with pytest.raises(ConfigError, match=r"row 1 \(Detect\): expected a convolution right before it"):
        Darknet(Table("t", (Pool(), Detect(((1, 1),), True))), 2)
    with pytest.raises(ConfigError, match=r"row 0: filters=9, expected 7 for 2 classes"):
        Darknet(Table("t", (Conv(9, 1, batch_norm=False), Detect(((1, 1),), True))), 2)


@pytest.mark.parametrize("kernel", range(1, 6))
@pytest.mark.parametrize("stride", range(1, 5))
def test_max_pooling_is_darknets(kernel: int, stride: int) -> None:
    """As github.com/pjreddie/darknet, src/maxpool_layer.c, counts rows and where they begin."""
    built = 0
    for padding in (None, *range(kernel)):
        pool = Pool(kernel, stride, padding=padding).module()
        total = kernel - 1 if padding is None else padding
        if pool is None or (stride == 1 and kernel % 2 == 0 and total == kernel - 1):
            assert total % 2  # refused, or one wider
            continue
        built += 1
        for size in range(kernel, 15):
            row = torch.randn(size) - 5
            starts = [stride * i - total // 2 for i in range((size + total - kernel) // stride + 1)]
            expected = torch.stack([row[max(start, 0) : start + kernel].max() for start in starts])
            map_NCHW = row[None, None, None, :].expand(1, 1, size, size)
            assert torch.equal(pool(map_NCHW)[0, 0, 0], expected), (padding, size)
            assert pool(map_NCHW).shape[2] == len(expected)
    assert built


def test_a_max_pooling_that_is_not_built() -> None:
    with pytest.raises(
        ConfigError, match=r"row 0 \(Pool\): kernel=4, stride=3, padding=None, expected a padding below"
    ):
        Darknet(Table("t", (Pool(4, 3), Conv(4))), 2)


def _write(path: Path, model: Darknet, seen: int, version: tuple[int, int] = (0, 2)) -> None:
    """A .weights file by darknet's rules: bias, gain, mean, variance, weights of each convolution."""
    with open(path, "wb") as file:
        file.write(np.array([*version, 0], "<i4").tobytes())
        file.write(np.array([seen], "<i8" if 10 * version[0] + version[1] >= 2 else "<i4").tobytes())
        for name, module in model.named_children():
            if isinstance(module, nn.Conv2d):
                norm = model._modules.get(f"norm{name[4:]}")
                parts: list[Tensor | None] = [module.bias]
                if isinstance(norm, nn.BatchNorm2d):
                    parts = [norm.bias, norm.weight, norm.running_mean, norm.running_var]
                for part in [*parts, module.weight]:
                    assert part is not None
                    file.write(part.detach().numpy().astype("<f4").tobytes())


def _random(model: Darknet) -> Darknet:
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.1)
    return model.eval()


def _network_of(path: Path) -> Darknet:
    cfg = read_cfg(path)
    return Darknet(cfg.table, cfg.num_classes)


class TestCfg:
    def test_all_it_says(self, tmp_path: Path) -> None:
        (tmp_path / "small.cfg").write_text(CFG)
        cfg = read_cfg(tmp_path / "small.cfg")
        assert cfg.input_shape == (3, 32, 64)
        assert cfg.num_classes == 2
        assert cfg.table.name == "small"
        model = Darknet(cfg.table, cfg.num_classes).eval()
        assert [head.anchors for head in model.heads] == [((10, 13), (20, 30)), ((2, 3),)]
        assert [head.pixels for head in model.heads] == [4, 2]
        coarse, fine = model(torch.zeros(1, 3, 32, 64))
        assert coarse.shape == (1, 14, 8, 16)
        assert fine.shape == (1, 7, 16, 32)
        assert isinstance(model.act0, nn.LeakyReLU) and isinstance(model.act2, nn.ReLU)
        assert "act3" not in model._modules

    def test_a_cfg_equals_our_table(self, tmp_path: Path) -> None:
        """yolov2-tiny-voc.cfg, written from its published layer list."""
        conv = "[convolutional]\nbatch_normalize=1\nfilters={}\nsize=3\nstride=1\npad=1\nactivation=leaky\n"
        text = "[net]\nwidth=416\nheight=416\nchannels=3\n"
        for filters in (16, 32, 64, 128, 256, 512):
            text += conv.format(filters) + f"[maxpool]\nsize=2\nstride={2 if filters < 512 else 1}\n"
        text += conv.format(1024) * 2 + "[convolutional]\nsize=1\nstride=1\npad=1\nfilters=125\nactivation=linear\n"
        text += "[region]\nanchors = 1.08,1.19,  3.42,4.41,  6.63,11.38,  9.42,5.11,  16.62,10.52\n"
        text += "classes=20\ncoords=4\nnum=5\nsoftmax=1\n"
        (tmp_path / "t.cfg").write_text(text)
        cfg = read_cfg(tmp_path / "t.cfg")
        ours, theirs = darknet.yolov2_tiny_voc(20).eval(), Darknet(cfg.table, cfg.num_classes).eval()
        theirs.load_state_dict(ours.state_dict())
        x = torch.rand(1, 3, 64, 64)
        assert torch.equal(ours(x), theirs(x))
        assert ours.heads == theirs.heads

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("[upsample]", "[dance]", r"line \d+, \[dance\]: section \[dance\] is not one of"),
            ("filters=8\nsize=3\nstride=2", "filters=-8\nsize=3\nstride=2", r"filters='-8', expected an integer >= 1"),
            ("from=-3", "from=7", r"\[shortcut\]: refers to layer 7 from layer 5, expected one before it"),
            ("activation=relu", "activation=mish", r"activation='mish', expected leaky, linear or relu"),
            ("mask = 0", "mask = 4", r"mask=\[4\], expected numbers below the 3 anchors"),
            ("width=64", "width", r"line 5: 'width', expected \[section\] or key=value"),
            ("[net]", "[nut]", r"the first section must be \[net\]"),
            ("layers=-1, 1", "layers=-1, x", r"layers='-1, x', expected numbers"),
            ("mask = 0\nanchors = 2,3, 10", "mask = 0\nanchors = 2,3,4, 10", r"expected pairs of numbers > 0"),
            ("filters=14", "filters=15", r"row 6: filters=15, expected 14 for 2 classes"),
            ("size=3\nstride=2", "size=3\nstrid=2", r"line \d+, \[convolutional\]: strid=2, .* did you mean stride"),
            ("size=3\nstride=2", "size=3\ndilation=2\nstride=2", r"line 25, .*dilation=2, expected 1: nothing else"),
            (
                "size=2\nstride=2",
                "size=4\nstride=3",
                r"\[maxpool\]: size=4, stride=3, padding=3, expected a padding below",
            ),
            ("mask = 1,2", "mask = 1,2\nscale_x_y=1.2", r"line \d+, \[yolo\]: scale_x_y=1.2, expected 1"),
            ("mask = 1,2", "mask = 1,2\nnew_coords=1", r"line \d+, \[yolo\]: new_coords=1, expected 0"),
            ("mask = 1,2", "mask = 1,2\nnum=2", r"\[yolo\]: num=2, expected 3: the number of anchors"),
            ("from=-3", "from=-3\nweights_type=per_channel", r"\[shortcut\]: weights_type=per_channel, expected none"),
            ("[yolo]\nmask = 1,2", "[region]\nsoftmax=0", r"\[region\]: softmax=0, expected softmax=1"),
            ("[yolo]\nmask = 1,2", "[region]", r"\[region\]: softmax=0, expected softmax=1"),
            ("[yolo]\nmask = 1,2", "[region]\nsoftmax=1\ncoords=8", r"\[region\]: coords=8, expected 4"),
            ("batch=1", "time_steps=3", r"line 4, \[net\]: time_steps=3, expected 1: nothing else is supported"),
            ("batch=1", "inputs=256", r"line 4, \[net\]: inputs=256, an unknown key"),
            ("batch=1", "momentun=0.9", r"\[net\]: momentun=0.9, an unknown key; did you mean momentum"),
            ("[upsample]", "[cost]\ntyp=sse\n[upsample]", r"\[cost\]: typ=sse, an unknown key; did you mean type"),
            ("[upsample]", "[dropout]\nsize=3\n[upsample]", r"\[dropout\]: size=3, an unknown key"),
        ],
    )
    def test_what_it_cannot_say(self, tmp_path: Path, old: str, new: str, message: str) -> None:
        assert old in CFG
        (tmp_path / "bad.cfg").write_text(CFG.replace(old, new, 1))
        with pytest.raises(ConfigError, match=message):
            _network_of(tmp_path / "bad.cfg")

    def test_what_darknet_trains_by(self, tmp_path: Path) -> None:
        """The [net] of yolov4.cfg and darknet19.cfg, a [dropout] and a [cost]."""
        net = "subdivisions=8\nmomentum=0.949\ndecay=0.0005\nangle=0\nsaturation = 1.5\nexposure = 1.5\nhue=.1\n"
        net += "learning_rate=0.0013\nburn_in=1000\nmax_batches = 500500\npolicy=steps\nsteps=400000,450000\n"
        net += "scales=.1,.1\nmosaic=1\nmax_crop=448\nmin_crop=128\npower=4\naspect=.75\n"
        sections = "[dropout]\nprobability=.5\n\n[cost]\ntype=sse\n\n"
        text = CFG.replace("channels=3\n", f"channels=3\n{net}")
        (tmp_path / "small.cfg").write_text(text + sections)
        assert len(_network_of(tmp_path / "small.cfg").heads) == 2

    def test_anchors_of_a_region_are_in_cells_of_its_map(self, tmp_path: Path) -> None:
        text = CFG.replace("[yolo]\nmask = 1,2\nanchors = 2,3, 10,13, 20,30", "[region]\nanchors = 1,2, 3,4\nsoftmax=1")
        (tmp_path / "small.cfg").write_text(text)
        coarse, fine = _network_of(tmp_path / "small.cfg").heads
        assert (coarse.pixels, coarse.anchors) == (4, ((4, 8), (12, 16)))
        assert fine.anchors == ((2, 3),)

    def test_what_matters_in_training_only(self, tmp_path: Path) -> None:
        """All that yolov3-tiny.cfg says of a [yolo], values that mean what is built, and a key that comes twice."""
        training = "num=3\njitter=.3\nignore_thresh = .7\ntruth_thresh = 1\nrandom=1\nscale_x_y = 1.0\n"
        text = CFG.replace("mask = 1,2\n", f"mask = 1,2\n{training}").replace("size=2\n", "size=2\npadding=1\nsize=3\n")
        (tmp_path / "small.cfg").write_text(text)
        model = _network_of(tmp_path / "small.cfg")
        assert isinstance(model.pool0, nn.MaxPool2d) and model.pool0.kernel_size == 2

    @pytest.mark.parametrize(("padding", "size"), [("", 7), ("padding=1\n", 7), ("padding=0\n", 6)])
    def test_a_max_pooling_of_an_odd_map(self, tmp_path: Path, padding: str, size: int) -> None:
        """13 columns are 7 in darknet; network and cost model count alike."""
        text = CFG[: CFG.index("[convolutional]\nbatch_normalize=1\nfilters=8")].replace(
            "stride=2", f"stride=2\n{padding}"
        )
        text = text.replace("width=64\nheight=32", "width=13\nheight=13")
        (tmp_path / "odd.cfg").write_text(text + "[convolutional]\nsize=1\nfilters=4\nactivation=linear\n[avgpool]\n")
        model = _network_of(tmp_path / "odd.cfg").eval()
        assert model.pool0(torch.zeros(1, 4, 13, 13)).shape[2:] == (size, size)
        spec = trace(model, (3, 13, 13)).by_name["pool0"]
        assert (spec.out_height, spec.out_width) == (size, size)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"no.cfg cannot be read"):
            read_cfg(tmp_path / "no.cfg")


class TestWeights:
    @pytest.mark.parametrize("version", [(0, 1), (0, 2), (1, 0)])
    def test_every_value_in_its_place(self, tmp_path: Path, version: tuple[int, int]) -> None:
        source = _random(darknet.digits_yolo(4))
        _write(tmp_path / "w.weights", source, 1234, version)
        model = darknet.digits_yolo(4).eval()
        assert read_weights(model, tmp_path / "w.weights") == 1234
        for name, value in source.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name
        x = torch.rand(1, 1, 32, 32)
        assert torch.equal(model(x), source(x))

    def test_first_layers_only(self, tmp_path: Path) -> None:
        rows = (Conv(4), Conv(6), HEAD, Detect(((1, 1),), True))
        backbone = _random(Darknet(Table("b", rows[:1]), 2))
        _write(tmp_path / "b.weights", backbone, 0)
        model = Darknet(Table("t", rows), 2)
        before = model.conv1.weight.clone()
        read_weights(model, tmp_path / "b.weights", layers=1)
        assert torch.equal(model.conv0.weight, backbone.conv0.weight)
        assert torch.equal(model.norm0.running_var, backbone.norm0.running_var)
        assert torch.equal(model.conv1.weight, before)

    @pytest.mark.parametrize("cut", [-4, 4])
    def test_another_size(self, tmp_path: Path, cut: int) -> None:
        source = darknet.digits_yolo(10)
        path = tmp_path / "w.weights"
        _write(path, source, 0)
        data = path.read_bytes()
        path.write_bytes(data[:cut] if cut < 0 else data + b"\0" * cut)
        model = darknet.digits_yolo(10)
        before = model.conv0.weight.clone()
        with pytest.raises(CheckpointError, match=r"holds \d+ values, network 'digits_yolo' with 10 classes needs \d+"):
            read_weights(model, path)
        assert torch.equal(model.conv0.weight, before)

    def test_no_weights_at_all(self, tmp_path: Path) -> None:
        path = tmp_path / "w.weights"
        with pytest.raises(CheckpointError, match=r"w.weights cannot be read"):
            read_weights(darknet.digits_yolo(10), path)
        path.write_bytes(b"\0" * 6)
        with pytest.raises(CheckpointError, match=r"w.weights cannot be read"):
            read_weights(darknet.digits_yolo(10), path)
        path.write_bytes(b"PK\x03\x04" * 10)
        with pytest.raises(CheckpointError, match=r"of version 67324752"):
            read_weights(darknet.digits_yolo(10), path)

    def test_values_that_are_no_numbers(self, tmp_path: Path) -> None:
        source = darknet.digits_yolo(10)
        source.conv1.weight.data[0, 0, 0, 0] = float("nan")
        _write(tmp_path / "w.weights", source, 0)
        with pytest.raises(CheckpointError, match=r"values that are not finite"):
            read_weights(darknet.digits_yolo(10), tmp_path / "w.weights")
