"""LightningModules and the one function that fits them.

```
training <- classification, detection <- float_part <- objectives <- fit <- quantize
random_state <- fit
```
"""

from qat.tasks.classification import Classification
from qat.tasks.detection import Detection
from qat.tasks.fit import fit
from qat.tasks.float_part import FloatPartDetection
from qat.tasks.objectives import objective_of
from qat.tasks.training import Objective, Recipe, TrainingTask, evaluate

__all__ = [
    "Classification",
    "Detection",
    "FloatPartDetection",
    "Objective",
    "Recipe",
    "TrainingTask",
    "evaluate",
    "fit",
    "objective_of",
]
