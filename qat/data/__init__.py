"""Images for training and evaluation, as Lightning data modules.

```
module <- augmentation, splits, loader <- archives, digits, torchvision's CIFAR-10     (one class per image)
       <- folder                                            (the same, from files as they are needed)
       <- detection <- detection_formats <- boxes, detection_files; scenes             (boxes)
build_data: from settings to any of these
```
"""

from qat.data.augmentation import Augmentation
from qat.data.build import build_data
from qat.data.detection import DetectionDataModule
from qat.data.folder import FolderDataModule
from qat.data.module import ImageDataModule, LabelDataModule
from qat.data.splits import ImageSet, Splits

__all__ = [
    "Augmentation",
    "DetectionDataModule",
    "FolderDataModule",
    "ImageDataModule",
    "ImageSet",
    "LabelDataModule",
    "Splits",
    "build_data",
]
