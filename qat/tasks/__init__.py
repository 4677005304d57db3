"""LightningModules and the one function that fits them.

```
training <- classification, detection <- fit <- quantize
```
"""

from qat.tasks.classification import Classification, ClassificationTask, accuracy, logits_of
from qat.tasks.fit import fit
from qat.tasks.training import Objective, Recipe, TrainingTask, evaluate

__all__ = [
    "Classification",
    "ClassificationTask",
    "Objective",
    "Recipe",
    "TrainingTask",
    "accuracy",
    "evaluate",
    "fit",
    "logits_of",
]
