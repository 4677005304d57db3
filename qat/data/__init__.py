"""Images for training and evaluation, as Lightning data modules.

```
augmentation   splits <- archives, digits, torchvision's CIFAR-10
      └──── loader <- module <- build_data
```
"""

from qat.data.augmentation import Augmentation
from qat.data.build import build_data
from qat.data.module import ImageDataModule
from qat.data.splits import ImageSet, Splits

__all__ = ["Augmentation", "ImageDataModule", "ImageSet", "Splits", "build_data"]
