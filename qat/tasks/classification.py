"""Classification: cross-entropy against labels, divergence from a teacher's logits, top-1."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat.normalization import Normalization
from qat.tasks.training import Recipe, TrainingTask


@dataclass(frozen=True)
class Classification:
    """The objective of networks that answer with logits (N, classes); targets are int64 labels (N,)."""

    score: str = "accuracy"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(outputs, targets)

    def distillation_loss(self, outputs: Tensor, teacher_outputs: Tensor, temperature: float) -> Tensor:
        """Divergence of softened predictions.

        Source: Hinton et al., "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), section 2.
        """
        student = (outputs / temperature).log_softmax(1)
        teacher = (teacher_outputs / temperature).log_softmax(1)
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2

    def meter(self) -> ClassificationMeter:
        """Measures "accuracy" and "loss"."""
        return ClassificationMeter()


class ClassificationMeter:
    """Top-1 and cross-entropy over all images."""

    def __init__(self) -> None:
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Takes in logits (N, classes) and labels (N,)."""
        self._logits.append(outputs.cpu())
        self._labels.append(targets.cpu())

    def compute(self) -> dict[str, float]:
        """Top-1 in [0, 1] under "accuracy", and "loss"."""
        logits, labels = torch.cat(self._logits), torch.cat(self._labels)
        return {"accuracy": accuracy(logits, labels), "loss": float(F.cross_entropy(logits, labels))}


class ClassificationTask(TrainingTask):
    """Trains a classifier on batches of (uint8 images NCHW, int64 labels N).

    Args:
        model: Float model or `QuantNetwork`.
        normalization: Applied to every batch.
        recipe: How to train.
        teacher: Float model whose logits are imitated; None for labels alone.
    """

    def __init__(
        self, model: nn.Module, normalization: Normalization, recipe: Recipe, teacher: nn.Module | None = None
    ) -> None:
        super().__init__(model, normalization, recipe, Classification(), teacher)


@torch.no_grad()
def logits_of(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], normalization: Normalization
) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) and labels (N,) of a model in inference mode, over batches of (uint8 images, labels)."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    outputs, targets = [], []
    for images_NCHW, labels in batches:
        outputs.append(model(normalization(images_NCHW.to(device))).float().cpu())
        targets.append(labels)
    model.train(training)
    return torch.cat(outputs), torch.cat(targets)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is that of their label, in [0, 1]."""
    return float((logits.argmax(1) == labels).double().mean())
