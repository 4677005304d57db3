"""Readers of darknet's files: `.cfg` becomes a `Table`, `.weights` fills the network of a table.

Source: github.com/pjreddie/darknet, src/parser.c (`load_weights_upto`, `load_convolutional_weights`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qat.errors import CheckpointError, ConfigError
from qat.models.darknet import (
    POOLS,
    Average,
    Conv,
    Darknet,
    Detect,
    Pool,
    Reorg,
    Route,
    Row,
    Shortcut,
    Table,
    Upsample,
)
from qat.models.darknet_tables import cells

LARGEST_CFG = 1 << 20
"""Bytes; real ones have a few thousand."""


@dataclass(frozen=True)
class Cfg:
    """What a `.cfg` file says.

    Args:
        table: The network.
        input_shape: Channels, rows, columns of an image.
        num_classes: Of the boxes, or of the image.
    """

    table: Table
    input_shape: tuple[int, int, int]
    num_classes: int


@dataclass(frozen=True)
class _Section:
    kind: str
    line: int
    values: Mapping[str, str]
    lines: Mapping[str, int]


def read_cfg(path: Path) -> Cfg:
    """Reads a network from a `.cfg` file.

    Raises:
        ConfigError: The file is missing or says something that is unknown here; the message names file and line.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > LARGEST_CFG:
            raise ConfigError(f"{path} has {size} bytes, expected a .cfg of at most {LARGEST_CFG}")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"network description {path} cannot be read: {error}") from error
    sections = _sections(text, path)
    if not sections or sections[0].kind not in ("net", "network"):
        raise ConfigError(f"{path}: the first section must be [net]")
    net, *layers = sections
    reader = _Reader(path)
    reader.check_keys(net)
    shape = tuple(reader.integer(net, name, low=1) for name in ("channels", "height", "width"))
    rows: list[Row] = []
    for number, section in enumerate(layers):
        try:
            read = _READERS[section.kind]
        except KeyError:
            raise reader.error(section, f"section [{section.kind}] is not one of {sorted(_READERS)}") from None
        reader.check_keys(section)
        row = read(reader, section, number)
        rows.append(replace(row, label=str(number)) if row is not None else Route((str(number - 1),), str(number)))
    _scale_anchors(rows)
    _unlabel_heads(rows)
    if not rows:
        raise ConfigError(f"{path} has no layer")
    classes = reader.classes
    if not classes:
        last = next((row for row in reversed(rows) if isinstance(row, Conv)), None)
        classes = {last.filters if last is not None else 0}
    if len(classes) > 1:
        raise ConfigError(f"{path}: its detection layers have different numbers of classes, {sorted(classes)}")
    return Cfg(Table(path.stem, tuple(rows), shape[0]), (shape[0], shape[1], shape[2]), classes.pop())


def _sections(text: str, path: Path) -> list[_Section]:
    found: list[_Section] = []
    values: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0].partition(";")[0].strip()
        if line.startswith("[") and line.endswith("]"):
            values, lines = {}, {}
            found.append(_Section(line[1:-1].strip().lower(), number, values, lines))
        elif line:
            key, equals, value = line.partition("=")
            if not equals or not found:
                raise ConfigError(f"{path}, line {number}: {line!r}, expected [section] or key=value")
            values.setdefault(key.strip(), value.strip())  # of a key that comes twice darknet takes the first
            lines.setdefault(key.strip(), number)
    return found


def _scale_anchors(rows: list[Row]) -> None:
    """Brings anchors of [region], which are in cells of its map, to pixels of the image."""
    pixels: list[float] = []  # of the image, per pixel of each row's map
    for number, row in enumerate(rows):
        source = int(row.sources[0]) if isinstance(row, Route) else number - 1
        own = pixels[source] if source >= 0 else 1.0
        if isinstance(row, Conv | Pool):
            own *= row.stride
        elif isinstance(row, Reorg):
            own *= row.factor
        elif isinstance(row, Upsample):
            own /= row.factor
        elif isinstance(row, Detect) and row.softmax:
            rows[number] = replace(row, anchors=cells(row.anchors, own))
        pixels.append(own)


def _unlabel_heads(rows: list[Row]) -> None:
    """A convolution that gives a result is read by nothing else."""
    for number, row in enumerate(rows):
        if isinstance(row, Detect) and number and isinstance(rows[number - 1], Conv):
            rows[number - 1] = replace(rows[number - 1], label="")


class _Reader:
    """Turns sections into rows; gathers the numbers of classes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.classes: set[int] = set()

    def error(self, section: _Section, message: str) -> ConfigError:
        return ConfigError(f"{self.path}, line {section.line}, [{section.kind}]: {message}")

    def check_keys(self, section: _Section) -> None:
        """Refuses what is unknown, and values that would make another network than the one that is built."""
        keys = _KEYS[section.kind]
        for name, text in section.values.items():
            where = f"{self.path}, line {section.lines[name]}, [{section.kind}]: {name}={text}"
            if name in keys.fixed:
                if not _is_value(text, keys.fixed[name]):
                    raise ConfigError(f"{where}, expected {keys.fixed[name]}: nothing else is supported")
            elif name not in keys.read and name not in keys.training and name not in _TRAINING:
                near = difflib.get_close_matches(name, [*keys.read, *keys.fixed, *keys.training, *_TRAINING], 1)
                raise ConfigError(f"{where}, an unknown key{f'; did you mean {near[0]}?' if near else ''}")

    def integer(self, section: _Section, name: str, default: int | None = None, low: int = 0) -> int:
        text = section.values.get(name, "" if default is None else str(default))
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise self.error(section, f"{name}={text!r}, expected an integer >= {low}")
        return value

    def numbers(self, section: _Section, name: str) -> list[float]:
        text = section.values.get(name, "")
        try:
            return [float(part) for part in text.split(",")]
        except ValueError:
            raise self.error(section, f"{name}={text!r}, expected numbers with commas between them") from None

    def conv(self, section: _Section, number: int) -> Row:
        activation = section.values.get("activation", "logistic")
        if activation not in ("leaky", "linear", "relu"):
            raise self.error(section, f"activation={activation!r}, expected leaky, linear or relu")
        if self.integer(section, "groups", 1) != 1:
            raise self.error(section, f"groups={section.values['groups']}, expected 1")
        kernel = self.integer(section, "size", 1, 1)
        if not self.integer(section, "pad", 0) and self.integer(section, "padding", 0) != kernel // 2:
            raise self.error(section, "pad=0, expected pad=1: half the kernel")
        return Conv(
            self.integer(section, "filters", 1, 1),
            kernel,
            self.integer(section, "stride", 1, 1),
            bool(self.integer(section, "batch_normalize", 0)),
            activation,
        )

    def pool(self, section: _Section, number: int) -> Row:
        stride = self.integer(section, "stride", 1, 1)
        size = self.integer(section, "size", stride, 1)
        padding = self.integer(section, "padding", size - 1)
        pool = Pool(size, stride, padding=padding)
        if pool.module() is None:
            raise self.error(section, f"size={size}, stride={stride}, padding={padding}, {POOLS}")
        return pool

    def reorg(self, section: _Section, number: int) -> Row:
        if self.integer(section, "reverse", 0):
            raise self.error(section, "reverse=1 is depth to space, which no network here uses")
        return Reorg(self.integer(section, "stride", 1, 1))

    def upsample(self, section: _Section, number: int) -> Row:
        return Upsample(self.integer(section, "stride", 2, 1))

    def route(self, section: _Section, number: int) -> Row:
        if "groups" in section.values:
            raise self.error(section, "groups, a part of the channels, is not supported")
        return Route(tuple(self.index(section, value, number) for value in self.numbers(section, "layers")))

    def shortcut(self, section: _Section, number: int) -> Row:
        if section.values.get("activation", "linear") != "linear":
            raise self.error(section, f"activation={section.values['activation']!r}, expected linear")
        (source, *rest) = self.numbers(section, "from")
        if rest:
            raise self.error(section, "from names several layers, expected one")
        return Shortcut(self.index(section, source, number))

    def index(self, section: _Section, value: float, number: int) -> str:
        """Label of a layer that is given by its number, or counted back from the present one."""
        index = int(value) + number if value < 0 else int(value)
        if not 0 <= index < number or value != int(value):
            raise self.error(section, f"refers to layer {value:g} from layer {number}, expected one before it")
        return str(index)

    def average(self, section: _Section, number: int) -> Row:
        return Average()

    def region(self, section: _Section, number: int) -> Row:
        if not self.integer(section, "softmax", 0):
            raise self.error(section, "softmax=0, expected softmax=1: one class of all")
        pairs = self.pairs(section)
        self.classes.add(self.integer(section, "classes", low=1))
        return Detect(tuple(pairs), softmax=True)  # in cells, until the stride is known

    def yolo(self, section: _Section, number: int) -> Row:
        pairs = self.pairs(section)
        mask = [int(value) for value in self.numbers(section, "mask")]
        if any(not 0 <= index < len(pairs) for index in mask):
            raise self.error(section, f"mask={mask}, expected numbers below the {len(pairs)} anchors")
        self.classes.add(self.integer(section, "classes", low=1))
        return Detect(tuple(pairs[index] for index in mask), softmax=False)

    def pairs(self, section: _Section) -> list[tuple[float, float]]:
        values = self.numbers(section, "anchors")
        if len(values) % 2 or any(value <= 0 for value in values):
            raise self.error(section, f"anchors={values}, expected pairs of numbers > 0")
        number = self.integer(section, "num", len(values) // 2)
        if number != len(values) // 2:
            raise self.error(section, f"num={number}, expected {len(values) // 2}: the number of anchors")
        return list(zip(values[::2], values[1::2], strict=True))

    def nothing(self, section: _Section, number: int) -> None:
        """Sections that matter in training only; they count as layers."""
        if not number:
            raise self.error(section, "cannot be the first layer")


@dataclass(frozen=True)
class _Keys:
    """Keys of a section.

    Args:
        read: What the network is built of.
        fixed: What would change it, and the one value that is built.
        training: What matters to images, in training, or where boxes are suppressed, only.
    """

    read: frozenset[str] = frozenset()
    fixed: Mapping[str, str] = field(default_factory=dict)
    training: frozenset[str] = frozenset()


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _is_value(text: str, expected: str) -> bool:
    try:
        return float(text) == float(expected)
    except ValueError:
        return text == expected


_TRAINING = _words("learning_rate stopbackward onlyforward dontsave clip truth smooth")
"""Keys of any layer."""

_CONV = _Keys(
    _words("batch_normalize filters size stride pad padding activation groups"),
    {"dilation": "1", "flipped": "0", "binary": "0", "xnor": "0", "dot": "0", "antialiasing": "0"},
)
_NET = _Keys(
    _words("channels height width"),
    {"time_steps": "1"},
    _words(
        # steps and what they learn
        "batch subdivisions sequential_subdivisions max_batches momentum decay policy steps scales seq_scales step "
        "scale gamma power burn_in learning_rate_min sgdr_cycle sgdr_mult adam B1 B2 eps ema_alpha loss_scale "
        "try_fix_nan adversarial_lr max_chart_loss label_smooth_eps weights_reject_freq equidistant_point contrastive "
        "unsupervised badlabels_rejection_percentage num_sigmas_reject_badlabels notruth attention "
        # images
        "angle aspect saturation exposure hue flip blur gaussian_noise mixup cutmix mosaic mosaic_bound letter_box "
        "center max_crop min_crop max_ratio min_ratio contrastive_jit_flip contrastive_color resize_step random track "
        "augment_speed "
        # the machine
        "optimized_memory workspace_size_limit_MB use_cuda_graph dynamic_minibatch show_receptive_field"
    ),
)
_KEYS: Mapping[str, _Keys] = {
    "net": _NET,
    "network": _NET,
    "convolutional": _CONV,
    "conv": _CONV,
    "maxpool": _Keys(_words("size stride padding"), {"maxpool_depth": "0", "antialiasing": "0"}),
    "reorg": _Keys(_words("stride reverse"), {"flatten": "0", "extra": "0"}),
    "upsample": _Keys(_words("stride"), {"scale": "1"}),
    "route": _Keys(_words("layers groups")),
    "shortcut": _Keys(
        _words("from activation"),
        {"alpha": "1", "beta": "1", "weights_type": "none", "weights_normalization": "none"},
    ),
    "avgpool": _Keys(),
    "region": _Keys(
        _words("anchors classes num softmax"),
        {"coords": "4", "background": "0"},
        _words(
            "bias_match jitter rescore object_scale noobject_scale mask_scale class_scale coord_scale absolute thresh "
            "random log sqrt max focal_loss"
        ),
    ),
    "yolo": _Keys(
        _words("mask anchors classes num"),
        {"scale_x_y": "1", "new_coords": "0"},
        _words(
            "jitter ignore_thresh truth_thresh random max iou_loss iou_thresh iou_normalizer obj_normalizer "
            "cls_normalizer delta_normalizer max_delta nms_kind beta_nms label_smooth_eps objectness_smooth resize "
            "focal_loss counters_per_class"
        ),
    ),
    "softmax": _Keys(fixed={"groups": "1", "spatial": "0"}, training=_words("temperature")),
    "cost": _Keys(training=_words("type scale ratio noobject_scale thresh")),
    "dropout": _Keys(training=_words("probability dropblock dropblock_size_rel dropblock_size_abs")),
}
"""Keys of each section.

Source: github.com/pjreddie/darknet and github.com/AlexeyAB/darknet, src/parser.c.
"""

_READERS: Mapping[str, Callable[[_Reader, _Section, int], Row | None]] = {
    "convolutional": _Reader.conv,
    "conv": _Reader.conv,
    "maxpool": _Reader.pool,
    "reorg": _Reader.reorg,
    "upsample": _Reader.upsample,
    "route": _Reader.route,
    "shortcut": _Reader.shortcut,
    "avgpool": _Reader.average,
    "region": _Reader.region,
    "yolo": _Reader.yolo,
    "softmax": _Reader.nothing,
    "cost": _Reader.nothing,
    "dropout": _Reader.nothing,
}


@torch.no_grad()
def read_weights(model: Darknet, path: Path, layers: int | None = None) -> int:
    """Fills a network from a `.weights` file.

    The file holds a header (versions major, minor, revision; images seen) and, for each convolution in order, bias
    (or the batch norm's shift, gain, mean, variance) and weights, all little-endian float32.

    Args:
        model: Is filled in place, only if the whole file fits.
        path: The file.
        layers: First convolutions to fill, for files of a backbone; None for all.

    Returns:
        Images that darknet had trained on.

    Raises:
        CheckpointError: The file is missing, or does not have exactly the size that the network asks for.
    """
    path = Path(path)
    convolutions = model.convolutions()[:layers]
    targets = [tensor for conv, norm in convolutions for tensor in _in_file_order(conv, norm)]
    expected = sum(tensor.numel() for tensor in targets)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            major, minor, _ = np.fromfile(file, "<i4", 3)
            if major < 0 or minor < 0 or major > 1000 or minor > 1000:
                raise CheckpointError(f"{path} is of version {major}.{minor}, expected 0.1 to 1000.1000: no .weights?")
            # The count of images grew to 64 bits with version 0.2.
            (seen,) = np.fromfile(file, "<i8" if 10 * major + minor >= 2 else "<i4", 1)
            found = (size - file.tell()) / 4
            if found != expected:
                raise CheckpointError(
                    f"{path} holds {found:g} values, network {model.table.name!r} with {model.num_classes} classes "
                    f"needs {expected} for {len(convolutions)} convolutions"
                )
            values: NDArray[np.float32] = np.fromfile(file, "<f4", expected)
    except (OSError, ValueError) as error:  # numpy: too few values to unpack, from a file that ends in its header
        raise CheckpointError(f"weights file {path} cannot be read: {error}") from error
    if len(values) != expected or not np.isfinite(values).all():
        raise CheckpointError(f"weights file {path} is damaged: it holds values that are not finite, or ends early")
    start = 0
    for tensor in targets:
        part = values[start : start + tensor.numel()]
        tensor.copy_(torch.from_numpy(part.astype(np.float32)).view_as(tensor))
        start += tensor.numel()
    return int(seen)


def _in_file_order(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> list[Tensor]:
    if norm is None:
        assert conv.bias is not None
        return [conv.bias, conv.weight]
    assert norm.running_mean is not None and norm.running_var is not None
    return [norm.bias, norm.weight, norm.running_mean, norm.running_var, conv.weight]
