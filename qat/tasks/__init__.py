"""LightningModules and the one function that fits them.

```
training <- classification, detection <- ssd <- objectives <- fit <- quantize
```
"""

from qat.tasks.classification import Classification
from qat.tasks.detection import Detection
from qat.tasks.fit import fit
from qat.tasks.objectives import objective_of
from qat.tasks.ssd import SsdDetection
from qat.tasks.training import Objective, Recipe, TrainingTask, evaluate

__all__ = [
    "Classification",
    "Detection",
    "Objective",
    "Recipe",
    "SsdDetection",
    "TrainingTask",
    "evaluate",
    "fit",
    "objective_of",
]
