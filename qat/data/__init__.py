"""Images for training and evaluation, as Lightning data modules.

```
module <- augmentation, splits, loader <- archives, digits, torchvision's CIFAR-10     (one class per image)
       <- detection <- detection_formats <- boxes, detection_files; scenes             (boxes)
build_data: from settings to either
```
"""

from qat.data.augmentation import Augmentation
from qat.data.build import build_data
from qat.data.detection import DetectionDataModule
from qat.data.module import ImageDataModule, LabelDataModule
from qat.data.splits import ImageSet, Splits

__all__ = [
    "Augmentation",
    "DetectionDataModule",
    "ImageDataModule",
    "ImageSet",
    "LabelDataModule",
    "Splits",
    "build_data",
]
