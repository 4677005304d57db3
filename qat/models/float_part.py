"""What stays in float behind the hardware part of a torchvision detector: its own code, with maps given to it.

Source: torchvision.models.detection; losses and answers are those of the detectors' `forward`.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from qat.models.heads import Detections


class FloatPart:
    """A torchvision detector less its hardware part.

    Args:
        detector: SSD, RetinaNet, FCOS or Faster R-CNN; its modules are shared, not copied.
        pixels: Pixels of the image per cell of the first map, in both directions.
        first_label: torchvision's number of the first class: 1 where 0 is the background.
    """

    def __init__(self, detector: nn.Module, pixels: int, first_label: int) -> None:
        self.detector = detector
        self.pixels = pixels
        self.first_label = first_label

    def image_size(self, maps: Sequence[Tensor]) -> tuple[int, int]:
        """Rows and columns of the images that maps belong to."""
        return maps[0].shape[-2] * self.pixels, maps[0].shape[-1] * self.pixels

    def stand_ins(self, maps: Sequence[Tensor]) -> Mapping[str, nn.Module]:
        """Modules in place of those of the detector, by name, that the hardware part stands for.

        Args:
            maps: Of the hardware part, in float or dequantized; a map of one pixel may be (N, C).
        """
        return {"backbone": Given(by_level(maps))}

    def loss(self, maps: Sequence[Tensor], true: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Sum of the detector's own losses, a scalar.

        Args:
            maps: Of the hardware part, float32.
            true: "boxes" in pixels and "labels", counted as torchvision does, of each image.
        """
        losses: dict[str, Tensor] = self._run(maps, list(true))
        return torch.stack(list(losses.values())).sum()

    @torch.no_grad()
    def answers(self, maps: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """The detector's own answers: "boxes" in pixels, "scores" and "labels" of each image."""
        found: list[dict[str, Tensor]] = self._run(maps, None)
        return found

    def detections(self, maps: Sequence[Tensor]) -> list[Detections]:
        """The answers, with boxes in shares of the image and classes counted from 0."""
        rows, columns = self.image_size(maps)
        pixels = maps[0].new_tensor([columns, rows, columns, rows])
        return [
            Detections(one["boxes"] / pixels, one["scores"], one["labels"] - self.first_label)
            for one in self.answers(maps)
        ]

    def imitation(self, maps: Sequence[Tensor], teacher: Sequence[Tensor], temperature: float) -> Tensor:
        """Mean over the maps of their squared difference from a teacher's, by the variance of the teacher's.

        Source: Romero et al., "FitNets" (arXiv 1412.6550), section 2.2, with maps of the same size.

        Args:
            maps: Of the hardware part, float32.
            teacher: The teacher's, of the same shapes.
            temperature: Has no meaning for maps that are no logits.
        """
        pairs = zip(as_4d(maps), as_4d(teacher), strict=True)
        parts = [F.mse_loss(own, other) / other.var().clamp_min(1e-6) for own, other in pairs]
        return torch.stack(parts).mean()

    def _run(self, maps: Sequence[Tensor], true: list[Mapping[str, Tensor]] | None) -> Any:
        """The detector's `forward` for maps: losses with true boxes, else answers; in float32."""
        parts = {**self.detector._modules, **self.stand_ins(maps), "transform": _Unchanged()}
        # The mode says whether losses or answers are asked for; what is inside the parts keeps its own.
        whole = in_mode(self.detector, true is not None)
        whole.__dict__["_modules"] = {
            name: in_mode(part, true is not None) for name, part in parts.items() if part is not None
        }
        # While a quantized network is trained, the float model may be on another device.
        whole = whole.to(maps[0].device)
        images = maps[0].new_empty(()).expand(len(maps[0]), 3, *self.image_size(maps))  # only their size matters
        with torch.autocast(maps[0].device.type, enabled=False):
            return whole(images, true)


def as_4d(maps: Sequence[Tensor]) -> list[Tensor]:
    """Maps (N, C, H, W); a quantized network gives a map of one pixel as a row."""
    return [part if part.dim() == 4 else part[:, :, None, None] for part in maps]


def in_mode(module: nn.Module, training: bool) -> nn.Module:
    """A copy in training or inference mode that shares all sub-modules, in theirs, and all weights."""
    copied = copy.copy(module)
    copied.training = training
    return copied


def by_level(maps: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
    """Maps as a torchvision backbone gives them."""
    return OrderedDict((str(level), part) for level, part in enumerate(as_4d(maps)))


def rows_of(maps: Sequence[Tensor], columns: int) -> Tensor:
    """Maps (N, A * columns, H, W) of all levels as (N, K, columns), cell by cell, anchor by anchor."""
    rows = [part.permute(0, 2, 3, 1).reshape(len(part), -1, columns) for part in as_4d(maps)]
    return torch.cat(rows, 1)


class Given(nn.Module):
    """A module whose result is known.

    Args:
        result: The result.
        compute_loss: The module's method of this name, if it has one.
    """

    def __init__(self, result: Any, compute_loss: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.result = result
        self.compute_loss = compute_loss

    def forward(self, *_: Any) -> Any:
        """The result, for any arguments."""
        return self.result


class _Unchanged(nn.Module):
    """In place of torchvision's transform: images are normalised and have their size already."""

    def forward(self, images_NCHW: Tensor, targets: Any) -> tuple[ImageList, Any]:
        """Both as they came."""
        size = (int(images_NCHW.shape[-2]), int(images_NCHW.shape[-1]))
        return ImageList(images_NCHW, [size] * len(images_NCHW)), targets

    def postprocess(self, found: Any, *_: Any) -> Any:
        """Boxes as they are, in pixels of the images that were given."""
        return found
