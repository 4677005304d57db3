"""Classification: cross-entropy against labels, divergence from a teacher's logits, top-1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


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

    def hits(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Images whose largest logit is that of their label."""
        return outputs.argmax(1) == targets

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
        hits = (logits.argmax(1) == labels).double()
        return {"accuracy": float(hits.mean()), "loss": float(F.cross_entropy(logits, labels))}
