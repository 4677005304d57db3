"""True boxes: checked, counted, and packed into one tensor per batch.

A target tensor has the shape (N images, B boxes, 6): class, left, top, right, bottom, ignored.  Sides are shares of the
image's width and height; rows without a box have class -1; `ignored` is 0, `IGNORED` or `CROWD`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qat.errors import DataError

NO_BOX = -1.0
IGNORED = 1
"""A box that need not be found, and whose finding is no mistake: VOC's "difficult", what is hardly seen."""

CROWD = 2
"""The same for a box around many objects: an answer inside it is no mistake, however small (COCO's "iscrowd")."""

EXAMPLES = 5
"""Bad boxes of a kind that a report names."""


@dataclass(frozen=True)
class Boxes:
    """The boxes of one image.

    Args:
        sides_B4: float32 left, top, right, bottom as shares of the image's width and height.
        labels_B: int64 classes.
        kinds_B: int8: 0 for boxes to be found, `IGNORED`, `CROWD`.
    """

    sides_B4: NDArray[np.float32]
    labels_B: NDArray[np.int64]
    kinds_B: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.labels_B)

    @property
    def ignored_B(self) -> NDArray[np.bool_]:
        """Boxes that need not be found, and whose finding is no mistake."""
        return np.greater(self.kinds_B, 0)

    @property
    def crowd_B(self) -> NDArray[np.bool_]:
        """Boxes among them that are crowds."""
        return np.equal(self.kinds_B, CROWD)

    @classmethod
    def from_lists(
        cls,
        sides: Sequence[Sequence[float] | NDArray[np.floating]],
        labels: Sequence[int],
        kinds: Sequence[int] | None = None,
    ) -> Boxes:
        """From plain lists; nothing is ignored by default, and True is `IGNORED`."""
        return cls(
            np.asarray(sides, np.float32).reshape(-1, 4),
            np.asarray(labels, np.int64),
            np.zeros(len(labels), np.int8) if kinds is None else np.asarray(kinds, np.int8),
        )


@dataclass(slots=True)
class BoxReport:
    """What was found while annotations were read.

    Args:
        images: Images.
        boxes: Boxes that are used.
        clipped: Boxes among them that reached out of the image and were cut at its edge.
        empty: Boxes left out because they have no area.
        outside: Boxes left out because they lie outside of the image.
        unknown: Boxes left out because their class is unknown.
        examples: The first bad boxes of each kind, in words.
    """

    images: int = 0
    boxes: int = 0
    clipped: int = 0
    empty: int = 0
    outside: int = 0
    unknown: int = 0
    examples: list[str] = field(default_factory=list)

    def count(self, kind: str, example: str) -> None:
        """Counts a bad box of a kind: clipped, empty, outside, unknown."""
        number = getattr(self, kind)
        if number < EXAMPLES:
            self.examples.append(f"{kind}: {example}")
        setattr(self, kind, number + 1)

    def add(self, other: BoxReport) -> None:
        """Counts what another report counted."""
        for name in ("images", "boxes", "clipped", "empty", "outside", "unknown"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for example in other.examples:
            kind = example.partition(":")[0]
            if sum(known.startswith(f"{kind}:") for known in self.examples) < EXAMPLES:
                self.examples.append(example)

    @property
    def left_out(self) -> int:
        """Boxes that are not used."""
        return self.empty + self.outside + self.unknown

    def __str__(self) -> str:
        text = f"{self.images} images, {self.boxes} boxes"
        bad = {name: getattr(self, name) for name in ("empty", "outside", "unknown") if getattr(self, name)}
        if bad:
            text += "; left out " + ", ".join(f"{number} ({name})" for name, number in bad.items())
        return text + (f"; cut at the image's edge {self.clipped}" if self.clipped else "")


class BoxReader:
    """Checks the boxes of one image after the other.

    Args:
        class_names: Classes that are known.
    """

    reports: list[BoxReport]
    """What was found in each image."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.reports = []
        self._numbers = {name: number for number, name in enumerate(class_names)}

    def read(self, image: str, size: tuple[float, float], raw: Sequence[tuple[str, Sequence[float], int]]) -> Boxes:
        """The good boxes of an image.

        Args:
            image: What an error calls the image.
            size: Width and height, in the unit of the boxes.
            raw: Class, (left, top, right, bottom) and kind of each box: 0, `IGNORED` or `CROWD`.

        Raises:
            DataError: The image has no area, or a side is no number.
        """
        width, height = size
        if not (width > 0 and height > 0):
            raise DataError(f"{image}: its size is given as {width:g} x {height:g}, expected positive numbers")
        report = BoxReport(images=1)
        sides, labels, kinds = [], [], []
        for name, box, kind in raw:
            if not np.isfinite(box).all():
                raise DataError(f"{image}: box {list(box)} of class {name!r} holds a value that is no number")
            described = f"{image}: {name} {[round(float(side), 4) for side in box]} in {width:g} x {height:g}"
            shares = np.asarray(box, np.float64) / (width, height, width, height)
            inside = shares.clip(0, 1)
            if name not in self._numbers:
                report.count("unknown", described)
            elif shares[2] <= shares[0] or shares[3] <= shares[1]:
                report.count("empty", described)
            elif inside[2] <= inside[0] or inside[3] <= inside[1]:
                report.count("outside", described)
            else:
                # Files round to a pixel or to six digits: less than that is no reason to speak.
                if (np.abs(inside - shares) * (width, height, width, height) > 1e-3 * max(width, height)).any():
                    report.count("clipped", described)
                sides.append(inside)
                labels.append(self._numbers[name])
                kinds.append(kind)
        report.boxes = len(labels)
        self.reports.append(report)
        return Boxes.from_lists(sides, labels, kinds)


def pack(boxes: Sequence[Boxes], capacity: int) -> Tensor:
    """A target tensor (N, capacity, 6), float32.

    Raises:
        ValueError: An image has more boxes than `capacity`.
    """
    targets = torch.zeros(len(boxes), capacity, 6)
    targets[:, :, 0] = NO_BOX
    for number, own in enumerate(boxes):
        if len(own) > capacity:
            raise ValueError(f"image {number} has {len(own)} boxes, the tensor holds {capacity}")
        rows = targets[number, : len(own)]
        rows[:, 0] = torch.from_numpy(own.labels_B)
        rows[:, 1:5] = torch.from_numpy(own.sides_B4)
        rows[:, 5] = torch.from_numpy(own.kinds_B)
    return targets


def unpack(targets_NB6: Tensor) -> list[Boxes]:
    """The boxes of each image of a target tensor; inverse of `pack`."""
    result = []
    for rows in targets_NB6.cpu():
        own = rows[rows[:, 0] >= 0]
        result.append(Boxes(own[:, 1:5].numpy(), own[:, 0].long().numpy(), own[:, 5].to(torch.int8).numpy()))
    return result
