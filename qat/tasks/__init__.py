"""LightningModules and the one function that fits them."""

from qat.tasks.classification import ClassificationTask, Recipe, accuracy, logits_of
from qat.tasks.fit import fit

__all__ = ["ClassificationTask", "Recipe", "accuracy", "fit", "logits_of"]
