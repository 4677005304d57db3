"""torchvision's detectors in two parts: what hardware runs, and what stays in float behind it.

| detector               | hardware part                           | stays in float                          |
|------------------------|-----------------------------------------|-----------------------------------------|
| SSDlite320-MobileNetV3 | backbone and the head's convolutions    | default boxes, softmax, suppression     |
| SSD300-VGG16           | the same                                | the same                                |
| RetinaNet              | ResNet, feature pyramid and head        | boxes, sigmoid, suppression             |
| Faster R-CNN           | ResNet, feature pyramid and the         | proposals from their maps, pooling of   |
|                        | proposals' convolutions                 | regions, the box head's linear layers   |
| FCOS                   | ResNet, feature pyramid and head        | as RetinaNet                            |

FCOS's group norms and SSD300's division by length are done in integers too (`qat.integer`); batch norms in place of the
group norms (`qat.models.with_batch_norm`) cost hardware nothing.

Source: torchvision.models.detection, of which the modules are used as they are.
"""

from __future__ import annotations

from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.ssd import SSD

from qat.errors import TraceError
from qat.models.pyramid import Pyramid, pyramid_of
from qat.models.ssd import Ssd


def hardware_part(detector: nn.Module) -> Ssd | Pyramid:
    """The part of a torchvision detector that hardware runs; it shares the detector's weights.

    Its `float_part` does the rest, and is what `qat.tasks.FloatPartDetection` trains and measures it by.

    Raises:
        TraceError: The detector has none.
    """
    if isinstance(detector, SSD):
        return Ssd(detector)
    if isinstance(detector, RetinaNet | FCOS | FasterRCNN) and isinstance(detector.backbone, BackboneWithFPN):
        return pyramid_of(detector)
    raise TraceError(
        f"{type(detector).__name__} has no part that hardware runs; expected SSD, or RetinaNet, FCOS or "
        "Faster R-CNN with a feature pyramid"
    )
