"""LightningModules and the one function that fits them.

```
training <- classification, detection <- fit <- quantize
```
"""

from qat.tasks.classification import Classification
from qat.tasks.detection import Detection, objective_of
from qat.tasks.fit import fit
from qat.tasks.training import Objective, Recipe, TrainingTask, evaluate

__all__ = [
    "Classification",
    "Detection",
    "Objective",
    "Recipe",
    "TrainingTask",
    "evaluate",
    "fit",
    "objective_of",
]
