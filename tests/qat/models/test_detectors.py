"""torchvision's detectors: both parts together answer as the whole does, and the hardware part is quantized."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import qat
from hwmodel import load_network, uniform
from hwmodel.network import Op
from qat.convert import prepare
from qat.errors import TraceError
from qat.export import load_packed, save_packed
from qat.graph import read_graph, trace
from qat.models import retinanet_r50, ssd300, ssdlite320, with_batch_norm
from qat.models.detectors import hardware_part

OPTIONS = {"weights": None, "weights_backbone": None, "num_classes": 4}
SMALL = {**OPTIONS, "min_size": 128, "max_size": 128}
DETECTORS: dict[str, Callable[[], nn.Module]] = {
    "ssd300": lambda: detection.ssd300_vgg16(**OPTIONS),
    "ssdlite": lambda: detection.ssdlite320_mobilenet_v3_large(**OPTIONS),
    "retinanet": lambda: detection.retinanet_resnet50_fpn(**SMALL, score_thresh=0.0),
    "fcos": lambda: detection.fcos_resnet50_fpn(**SMALL, score_thresh=0.0),
    "fcos_bn": lambda: with_batch_norm(detection.fcos_resnet50_fpn(**SMALL, score_thresh=0.0)),
    "faster_rcnn": lambda: detection.fasterrcnn_resnet50_fpn(**SMALL, box_score_thresh=0.0),
}


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_two_parts_answer_as_the_whole(name: str) -> None:
    torch.manual_seed(0)
    detector = DETECTORS[name]().eval()
    size = {"ssdlite": 320, "ssd300": 300}.get(name, 128)
    images = torch.rand(1, 3, size, size)
    normalized = detector.transform(list(images))[0].tensors
    assert normalized.shape == images.shape
    expected = detector(list(images))
    part = hardware_part(detector).eval()
    found = part.float_part.answers(part(normalized))
    for ours, theirs in zip(found, expected, strict=True):
        assert len(theirs["boxes"]) > 0
        for key in ("boxes", "scores", "labels"):
            torch.testing.assert_close(ours[key], theirs[key])


def new_heads(detector: nn.Module, name: str) -> tuple[list[nn.Module], float]:
    """The modules that score and place boxes, and the slope behind them."""
    if name == "faster_rcnn":
        detector.roi_heads.detections_per_img = 1000
        return [detector.rpn.head, detector.roi_heads.box_predictor], 0.3
    return [detector.head.classification_head, detector.head.regression_head], 0.0


@torch.no_grad()
@pytest.mark.parametrize("name", ["retinanet", "fcos", "fcos_bn", "faster_rcnn"])
def test_a_batch_is_answered_at_once_as_image_by_image(name: str) -> None:
    torch.manual_seed(0)
    detector = DETECTORS[name]().eval()
    heads, slope = new_heads(detector, name)
    for module in (module for head in heads for module in head.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):  # the scores of new heads are nearly equal
            nn.init.kaiming_normal_(module.weight, slope)
    part = hardware_part(detector).eval()
    maps = [level / level.std() for level in part(torch.randn(3, 3, 128, 128))]
    found = part.float_part.detections(maps)
    expected = part.float_part.answers(maps)
    assert len(found) == 3
    for ours, theirs in zip(found, expected, strict=True):
        assert len(theirs["labels"].unique()) > 1
        torch.testing.assert_close(ours.scores_K, theirs["scores"])
        labels_K = ours.labels_K + part.float_part.first_label
        rows = torch.cat((ours.scores_K[:, None], labels_K[:, None], ours.boxes_K4 * 128), 1)
        others = torch.cat((theirs["scores"][:, None], theirs["labels"][:, None], theirs["boxes"]), 1)
        # Some scores are equal: their boxes may come in another order.
        nearest = torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist").min(1)
        assert sorted(nearest.indices.tolist()) == list(range(len(others)))
        assert nearest.values.max() < 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_images_without_objects(name: str) -> None:
    part = hardware_part(DETECTORS[name]()).eval()
    part.float_part.detector.score_thresh = 1.0
    found = part.float_part.detections(part(torch.zeros(2, 3, 128, 128)))
    assert [len(one.scores_K) for one in found] == [0, 0]


@torch.no_grad()
def test_ssdlite_is_quantized_whole() -> None:
    torch.manual_seed(0)
    detector = DETECTORS["ssdlite"]().eval()
    part = hardware_part(detector).eval()
    network = trace(part, (3, 320, 320))
    assert len(network.outputs) == 12
    x = torch.randn(2, 3, 320, 320)
    model = prepare(part, uniform(network, 8, 8, end_bit_width=8), (3, 320, 320))
    model.calibrate([x])
    outputs: tuple[Tensor, ...] = model.eval()(x)
    assert [output.numel() for output in outputs] == [output.numel() for output in part(x)]
    found = part.float_part.answers(outputs)
    assert set(found[1]) == {"boxes", "scores", "labels"}


def test_ssd300_is_traced_whole() -> None:
    """Maps of 38, 19, 10, 5, 3 and 1 cells: SSD (arXiv 1512.02325), figure 2; 4 anchors at both ends, 6 between."""
    network = trace(ssd300(20), (3, 300, 300))
    results = [network.by_name[name] for name in network.outputs]
    assert [layer.out_height for layer in results[0::2]] == [38, 19, 10, 5, 3, 1]
    assert [layer.out_channels for layer in results] == [b * c for b in (4, 6, 6, 6, 4, 4) for c in (21, 4)]
    (norm,) = [layer for layer in network.layers if layer.op is Op.L2_NORM]
    assert (norm.out_channels, norm.out_height) == (512, 38)


def test_torchvision_weights_load_by_their_names() -> None:
    theirs = DETECTORS["ssdlite"]().state_dict()
    ssdlite320(3).load_state_dict(theirs, strict=True)


def test_a_feature_pyramid_is_traced() -> None:
    """Sizes halve from a stride of 8 to 128: RetinaNet (arXiv 1708.02002), section 4, P3 to P7."""
    graph = read_graph(hardware_part(DETECTORS["retinanet"]()))
    network = graph.spec((3, 256, 384))
    results = [network.by_name[name] for name in graph.outputs]
    shapes = [(result.out_channels, result.out_height, result.out_width) for result in results]
    sizes = [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
    assert shapes == [(9 * columns, *size) for size in sizes for columns in (4, 4)]


def test_retinanet_is_the_network_that_hwmodel_knows() -> None:
    ours, table = trace(retinanet_r50(91), (3, 800, 800)), load_network("retinanet_r50")
    assert (ours.total_weights, ours.total_macs) == (table.total_weights, table.total_macs)
    assert len(ours.weighted) == len(table.weighted)


@torch.no_grad()
@pytest.mark.parametrize(("name", "layers"), [("retinanet", 10), ("fcos", 11), ("fcos_bn", 11), ("faster_rcnn", 3)])
def test_a_head_is_quantized_once_for_all_levels(name: str, layers: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    part = hardware_part(DETECTORS[name]().eval()).eval()
    network = trace(part, (3, 128, 128))
    later = [layer for layer in network.weighted if not layer.owns_weights]
    assert len(later) == 4 * layers
    model = prepare(part, uniform(network, 4, 8, end_bit_width=8), (3, 128, 128))
    images = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8)
    model.calibrate([images / 255])
    assert sum(layer.weight.numel() for layer in model.weighted_layers.values()) == network.total_weights
    deployed = qat.deploy(model.eval())
    save_packed(deployed.integers, tmp_path / "packed")
    expected, found = deployed.layer_codes(images), load_packed(tmp_path / "packed").layer_codes(images.numpy())
    assert all(np.array_equal(found[layer], codes.numpy()) for layer, codes in expected.items())
    codes = [expected[layer] for layer in network.outputs]
    maps = [one * scale for one, scale in zip(codes, deployed.output_scales, strict=True)]
    assert len(part.float_part.detections([one.float() for one in maps])) == 2


def test_what_is_no_such_detector() -> None:
    with pytest.raises(TraceError, match=r"Linear has no part that hardware runs; expected SSD, or RetinaNet"):
        hardware_part(nn.Linear(2, 2))


def test_group_norms_of_a_head_are_layers_and_batch_norms_join_its_convolutions() -> None:
    detector = detection.retinanet_resnet50_fpn_v2(**SMALL)
    for norms in (40, 0):
        network = trace(hardware_part(detector), (3, 128, 128))
        assert len(network.outputs) == 10
        assert len([layer for layer in network.layers if layer.op is Op.GROUP_NORM]) == norms
        with_batch_norm(detector)


def test_the_size_of_a_cell_follows_from_the_stages_of_the_backbone() -> None:
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, returned_layers=[1, 2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    part = hardware_part(detection.RetinaNet(backbone, 3))
    with torch.no_grad():
        assert part.float_part.image_size(part.eval()(torch.rand(1, 3, 128, 128))) == (128, 128)
    mobile = detection.fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None)
    with pytest.raises(TraceError, match=r"FasterRCNN has a pyramid on .* expected stages layer1..layer4 of a ResNet"):
        hardware_part(mobile)


def test_measuring_a_loss_changes_nothing() -> None:
    """Norms of a box head keep their statistics, and every module its mode."""
    part = hardware_part(detection.fasterrcnn_resnet50_fpn_v2(**SMALL)).eval()
    before = {name: value.clone() for name, value in part.state_dict().items()}
    true = [{"boxes": torch.tensor([[10.0, 20.0, 60.0, 90.0]]), "labels": torch.tensor([1])}] * 2
    with torch.no_grad():
        maps = part(torch.rand(2, 3, 128, 128))
        part.float_part.loss(maps, true)
        part.float_part.detections(maps)
    assert not any(module.training for module in part.modules())
    assert all(torch.equal(value, before[name]) for name, value in part.state_dict().items())
