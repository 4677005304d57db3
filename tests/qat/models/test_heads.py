"""Decoding of detector maps and suppression of doubles."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from qat.models.fastestdet import fastestdet
from qat.models.heads import FastestHead, Suppression, YoloHead, detect

ANCHORS = ((8.0, 16.0), (32.0, 24.0))


def logit(share: float) -> float:
    return math.log(share / (1 - share))


def yolo_map(softmax: bool) -> tuple[YoloHead, torch.Tensor]:
    """2 x 3 cells of 16 pixels; one box in row 1, column 2, second anchor."""
    head = YoloHead(ANCHORS, 16, 3, softmax)
    parts = torch.full((1, 2, 8, 2, 3), -20.0)
    parts[0, 1, :, 1, 2] = torch.tensor([logit(0.25), logit(0.5), math.log(0.5), 0.0, logit(0.9), 1.0, 3.0, 1.0])
    return head, parts.flatten(1, 2)


class TestYolo:
    def test_a_box_by_hand(self) -> None:
        head, map_NCHW = yolo_map(softmax=True)
        (found,) = detect((head,), map_NCHW, Suppression(score_threshold=0.5))
        # Centre (2.25, 1.5) of 3 x 2 cells; 16 x 24 pixels of an image of 48 x 32.
        expected = [2.25 / 3 - 16 / 96, 1.5 / 2 - 24 / 64, 2.25 / 3 + 16 / 96, 1.5 / 2 + 24 / 64]
        assert found.boxes_K4.tolist() == [pytest.approx(expected, abs=1e-6)]
        assert found.labels_K.tolist() == [1]
        assert found.scores_K.item() == pytest.approx(0.9 * math.exp(3) / (math.exp(3) + 2 * math.exp(1)))
        assert head.image_size(map_NCHW) == (32, 48)

    def test_classes_on_their_own(self) -> None:
        head, map_NCHW = yolo_map(softmax=False)
        (found,) = detect((head,), map_NCHW, Suppression(score_threshold=0.5))
        assert found.labels_K[0] == 1 and sorted(found.labels_K.tolist()) == [0, 1, 2]
        assert found.scores_K[0].item() == pytest.approx(0.9 / (1 + math.exp(-3)))

    def test_an_enormous_size_stays_finite(self) -> None:
        head = YoloHead(ANCHORS, 16, 3, True)
        assert head.boxes(torch.full((1, 2, 4, 2, 3), 1e4)).isfinite().all()


def test_fastestdet_by_hand() -> None:
    head = FastestHead(16, 2)
    map_NCHW = torch.full((1, 7, 2, 2), -20.0)
    map_NCHW[0, :, 0, 1] = torch.tensor([logit(0.8), 0.5, -0.5, logit(0.25), logit(0.5), 2.0, 1.0])
    (found,) = detect((head,), map_NCHW, Suppression(score_threshold=0.1))
    x, y = (math.tanh(0.5) + 1) / 2, math.tanh(-0.5) / 2
    assert found.boxes_K4.tolist() == [pytest.approx([x - 0.125, y - 0.25, x + 0.125, y + 0.25], abs=1e-6)]
    share = math.exp(2) / (math.exp(2) + math.exp(1))
    assert found.scores_K.item() == pytest.approx(0.8**0.6 * share**0.4)
    assert found.labels_K.tolist() == [0]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4), st.sampled_from([0.3, 0.6]))
def test_a_batch_is_its_images_one_by_one(seed: int, images: int, iou_threshold: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    heads = (YoloHead(ANCHORS, 16, 3, True), YoloHead(ANCHORS[:1], 8, 3, False))
    maps = [
        3 * torch.randn(images, head_channels, size, size, generator=generator)
        for head_channels, size in ((16, 3), (8, 6))
    ]
    rule = Suppression(score_threshold=0.2, iou_threshold=iou_threshold, keep=20)
    for number, found in enumerate(detect(heads, maps, rule)):
        (alone,) = detect(heads, [part[number : number + 1] for part in maps], rule)
        assert torch.equal(found.labels_K, alone.labels_K)
        torch.testing.assert_close(found.boxes_K4, alone.boxes_K4)
        assert len(found.scores_K) <= 20
        assert (found.scores_K.diff() <= 0).all() and (found.scores_K > 0.2).all()
        overlap = box_iou(found.boxes_K4, found.boxes_K4).triu(1)
        same = found.labels_K[:, None] == found.labels_K[None]
        assert (overlap[same] <= iou_threshold).all()


class TestFastestDet:
    def test_published_size(self) -> None:
        """244,490: what the published checkpoint holds without running statistics."""
        model = fastestdet()
        assert sum(parameter.numel() for parameter in model.parameters()) == 244_490
        assert model.eval()(torch.zeros(1, 3, 64, 96)).shape == (1, 85, 4, 6)

    @pytest.mark.data
    def test_published_weights(self, data_root) -> None:  # type: ignore[no-untyped-def]
        state = torch.load(data_root / "weights" / "fastestdet_coco.pth", map_location="cpu", weights_only=True)
        fastestdet().load_state_dict(state, strict=True)
