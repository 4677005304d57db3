"""Classification: training of a float or quantized network, with a float teacher's logits as a second target."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat.convert import QuantNetwork
from qat.errors import ConfigError, TrainingError
from qat.normalization import Normalization


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Args:
        epochs: Passes over the fit images, >= 1.
        learning_rate: Peak of the schedule, > 0.
        weight_decay: AdamW's, on weights only, >= 0.
        warmup_share: Share of the steps with rising learning rate, in [0, 1); the rest falls as a cosine.
        distillation_weight: Share of the loss that comes from the teacher's logits, in [0, 1].
        temperature: Softens the logits of teacher and student, > 0.
        gradient_clip: Largest gradient norm; 0 for none.
        mask_update_share: Share of the steps in which sparse planes are chosen anew, in [0, 1].
        mask_update_steps: Steps between two choices, >= 1.

    Raises:
        ConfigError: A field is out of range.
    """

    epochs: int = 10
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    warmup_share: float = 0.05
    distillation_weight: float = 0.7
    temperature: float = 3.0
    gradient_clip: float = 0.0
    mask_update_share: float = 0.5
    mask_update_steps: int = 50

    def __post_init__(self) -> None:
        checks = (
            ("epochs", self.epochs >= 1, ">= 1"),
            ("learning_rate", self.learning_rate > 0, "> 0"),
            ("weight_decay", self.weight_decay >= 0, ">= 0"),
            ("warmup_share", 0 <= self.warmup_share < 1, "in [0, 1)"),
            ("distillation_weight", 0 <= self.distillation_weight <= 1, "in [0, 1]"),
            ("temperature", self.temperature > 0, "> 0"),
            ("gradient_clip", self.gradient_clip >= 0, ">= 0"),
            ("mask_update_share", 0 <= self.mask_update_share <= 1, "in [0, 1]"),
            ("mask_update_steps", self.mask_update_steps >= 1, ">= 1"),
        )
        for name, ok, expected in checks:
            if not ok:
                raise ConfigError(f"trainer.{name}={getattr(self, name)!r}, expected {expected}")


class ClassificationTask(pl.LightningModule):
    """Trains `model` on batches of (uint8 images NCHW, int64 labels N).

    Args:
        model: Float model or `QuantNetwork`.
        normalization: Applied to every batch.
        recipe: How to train.
        teacher: Float model whose logits are imitated; None for labels alone.  It is never trained or saved.
    """

    def __init__(
        self, model: nn.Module, normalization: Normalization, recipe: Recipe, teacher: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.normalization = normalization
        self.recipe = recipe
        # In a tuple, so that the teacher's weights are no part of this module's checkpoints.
        self._teacher = () if teacher is None else (teacher.eval().requires_grad_(False),)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits of uint8 images."""
        logits: Tensor = self.model(self.normalization(images_NCHW))
        return logits

    def on_fit_start(self) -> None:
        """Brings the teacher to the model's device."""
        for teacher in self._teacher:
            teacher.to(self.device)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch.

        Raises:
            TrainingError: The loss is not finite.
        """
        images_NCHW, labels = batch
        self._update_masks()
        x_NCHW = self.normalization(images_NCHW)
        logits = self.model(x_NCHW).float()
        loss = F.cross_entropy(logits, labels)
        for teacher in self._teacher:
            with torch.no_grad():
                target = teacher(x_NCHW).float()
            loss = torch.lerp(
                loss, _distillation(logits, target, self.recipe.temperature), self.recipe.distillation_weight
            )
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"the loss became {loss.item()} at step {self.global_step}; earlier checkpoints are intact. "
                f"Try a smaller trainer.learning_rate (now {self.recipe.learning_rate}), trainer.gradient_clip=1 or "
                "trainer.precision=32-true"
            )
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def _update_masks(self) -> None:
        total = float(self.trainer.estimated_stepping_batches)
        due = self.global_step % self.recipe.mask_update_steps == 0
        if isinstance(self.model, QuantNetwork) and due and self.global_step <= self.recipe.mask_update_share * total:
            self.model.repick_masks()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs loss and top-1 of a validation batch."""
        images_NCHW, labels = batch
        logits = self(images_NCHW).float()
        self.log("val_loss", F.cross_entropy(logits, labels), batch_size=len(labels))
        hits = (logits.argmax(1) == labels).float().mean()
        self.log("val_accuracy", hits, prog_bar=True, batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        """AdamW; weight decay on weights only; warm-up, then a cosine to zero."""
        decayed: list[nn.Parameter] = []
        free: list[nn.Parameter] = []
        for name, parameter in self.model.named_parameters():
            (decayed if parameter.dim() > 1 and name.endswith("weight") else free).append(parameter)
        groups = [{"params": decayed, "weight_decay": self.recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=self.recipe.learning_rate)
        total = max(1, int(self.trainer.estimated_stepping_batches))
        warmup = int(self.recipe.warmup_share * total)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _distillation(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Divergence of softened predictions.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), section 2.
    """
    student = (logits / temperature).log_softmax(1)
    teacher = (target / temperature).log_softmax(1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


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
