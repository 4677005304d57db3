"""Training of a float or quantized network towards an objective, with a float teacher as a second target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from qat.convert import QuantNetwork
from qat.deployment import lower
from qat.errors import ConfigError, ExportError, TrainingError
from qat.exact import ExactNetwork
from qat.masks import MaskSchedule, Saliency
from qat.normalization import Normalization


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Args:
        epochs: Passes over the fit images, >= 1.
        learning_rate: Peak of the schedule, > 0.
        weight_decay: AdamW's, on weights only, >= 0.
        warmup_share: Share of the steps with rising learning rate, in [0, 1); the rest falls as a cosine.
        distillation_weight: Share of the loss that comes from the teacher's logits, in [0, 1]; 0 leaves it unused.
        temperature: Softens the logits of teacher and student, > 0.
        gradient_clip: Largest gradient norm; 0 for none.
        mask_update_share: Share of the steps in which sparse planes are chosen anew, in [0, 1].
        mask_update_steps: Steps between two choices, >= 1.
        mask_saliency: What decides the choice.
        mask_schedule: Whether densities are exact at once, or fall to what was asked until the last choice.

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
    mask_saliency: Saliency = Saliency.MAGNITUDE
    mask_schedule: MaskSchedule = MaskSchedule.IMMEDIATE

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
            ("mask_saliency", self.mask_saliency in list(Saliency), f"one of {[str(word) for word in Saliency]}"),
            ("mask_schedule", self.mask_schedule in list(MaskSchedule), f"one of {[str(w) for w in MaskSchedule]}"),
        )
        for name, ok, expected in checks:
            if not ok:
                raise ConfigError(f"trainer.{name}={getattr(self, name)!r}, expected {expected}")


class Meter(Protocol):
    """Gathers what a network answers, batch by batch."""

    def update(self, outputs: Any, targets: Tensor) -> None:
        """Takes in a batch: float32 outputs of the network, targets as the data module delivers them."""

    def compute(self) -> dict[str, float]:
        """Figures over all batches so far: at least the objective's score, and "loss"."""


class Objective(Protocol):
    """What a network is trained for.  Outputs are what the network returns: a tensor, or a tuple of tensors."""

    @property
    def score(self) -> str:
        """Name of the figure that selects, in [0, 1], larger is better: "accuracy", "ap50"."""

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Loss of a batch against its targets, a scalar."""

    def distillation_loss(self, outputs: Any, teacher_outputs: Any, temperature: float) -> Tensor:
        """Loss of a batch against a teacher's outputs, a scalar."""

    def hits(self, outputs: Any, targets: Tensor) -> Tensor | None:
        """Which images of a batch are answered right, bool (N,); None where an image is not simply right or wrong."""

    def meter(self) -> Meter:
        """An empty meter."""


class TrainingTask(pl.LightningModule):
    """Trains `model` on batches of (uint8 images NCHW, targets N...).

    Args:
        model: Float model or `QuantNetwork`.
        normalization: Applied to every batch.
        recipe: How to train.
        objective: What for.
        teacher: Float model whose outputs are imitated; None for targets alone.  It is never trained or saved.
        exact_share: Last share of the steps in which a `QuantNetwork` computes forward, in validation too, what its
            integers do (`qat.exact`), in [0, 1]; compiled or not, these steps are eager.
    """

    def __init__(
        self,
        model: nn.Module,
        normalization: Normalization,
        recipe: Recipe,
        objective: Objective,
        teacher: nn.Module | None = None,
        exact_share: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.exact_share = exact_share if isinstance(model, QuantNetwork) else 0.0
        self.normalization = normalization
        self.recipe = recipe
        self.objective = objective
        # In a tuple, so that the teacher's weights are no part of this module's checkpoints.
        teachers = () if teacher is None or not recipe.distillation_weight else (teacher,)
        self._teacher = tuple(teacher.eval().requires_grad_(False) for teacher in teachers)
        # What a step calls; in tuples for the same reason.
        self._network: tuple[Callable[[Tensor], Any], ...] = (model,)
        self._teachers: tuple[Callable[[Tensor], Any], ...] = self._teacher
        self._exact = tuple(ExactNetwork(one, normalization) for one in [model] if isinstance(one, QuantNetwork))
        self._meter = objective.meter()

    def forward(self, images_NCHW: Tensor) -> Any:
        """Outputs for uint8 images."""
        return self.model(self.normalization(images_NCHW))

    def _is_exact(self) -> bool:
        """Whether the steps of exact arithmetic have begun."""
        if not self.exact_share:
            return False
        steps = int(self.trainer.estimated_stepping_batches)
        return self.global_step >= steps - max(1, round(self.exact_share * steps))

    def compile_model(self, mode: str = "default") -> None:
        """Lets training steps run model and teacher as compiled graphs, the same weights; evaluation stays as it is.

        Args:
            mode: Of torch.compile; "reduce-overhead" records the kernels of a GPU once and replays them.
        """
        torch.compiler.reset()  # graphs of networks trained before count towards a limit of torch's
        self._network = (torch.compile(self.model, mode=mode),)
        self._teachers = tuple(torch.compile(teacher, mode=mode) for teacher in self._teacher)

    def on_fit_start(self) -> None:
        """Brings the teacher to the model's device.

        Raises:
            ExportError: Integers are to be trained with, and the network has none; better now than in the last steps.
        """
        for teacher in self._teacher:
            teacher.to(self.device)
        if self.exact_share and isinstance(self.model, QuantNetwork):
            with _integers_wanted():
                lower(self.model, self.normalization)

    def on_train_end(self) -> None:
        """Looks at what the last step left.

        Raises:
            TrainingError: A weight is not finite.
        """
        self._check_weights()

    def _check_weights(self) -> None:
        """Raises TrainingError if a weight is not finite: its code would be some integer, and the loss look sound."""
        finite = [parameter.isfinite().all() for parameter in self.model.parameters()]
        if finite and not bool(torch.stack(finite).all()):
            raise self._diverged("a weight became infinite or no number")

    def _diverged(self, what: str) -> TrainingError:
        return TrainingError(
            f"{what} at step {self.global_step}; earlier checkpoints are intact. "
            f"Try a smaller trainer.learning_rate (now {self.recipe.learning_rate}), trainer.gradient_clip=1 or "
            "trainer.precision=32-true"
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch.

        Raises:
            TrainingError: The loss or a weight is not finite.
            ExportError: The network has no integers any more, and they are to be trained with.
        """
        images_NCHW, targets = batch
        x_NCHW = self.normalization(images_NCHW)
        if self._is_exact():
            self._check_weights()
            with _integers_wanted():
                outputs = as_float32(self._exact[0](x_NCHW))
        else:
            outputs = as_float32(self._network[0](x_NCHW))
        loss = self.objective.loss(outputs, targets)
        for teacher in self._teachers:
            with torch.no_grad():
                answers = as_float32(teacher(x_NCHW))
            imitation = self.objective.distillation_loss(outputs, answers, self.recipe.temperature)
            loss = torch.lerp(loss, imitation, self.recipe.distillation_weight)
        if not bool(torch.isfinite(loss)):
            raise self._diverged(f"the loss became {loss.item()}")
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def on_after_backward(self) -> None:
        """Chooses the sparse planes anew when it is time, from the gradients of this batch if they count.

        The last choice is made in the last step of `mask_update_share`, whatever the interval, so that a gradual
        schedule ends at the exact density.
        """
        recipe, step = self.recipe, self.global_step
        steps = int(self.trainer.estimated_stepping_batches)
        last = min(int(recipe.mask_update_share * steps), steps - 1)
        due = step % recipe.mask_update_steps == 0 or step == last
        # A gradual schedule has to end at the exact density, even where its last choice is its first.
        chooses = recipe.mask_update_share > 0 or recipe.mask_schedule is MaskSchedule.GRADUAL
        if isinstance(self.model, QuantNetwork) and chooses and due and step <= last:
            self.model.repick_masks(recipe.mask_saliency, recipe.mask_schedule.progress(step, last))

    def on_validation_epoch_start(self) -> None:
        """Begins to gather figures."""
        self._meter = self.objective.meter()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Gathers a validation batch."""
        images_NCHW, targets = batch
        network = self._exact[0] if self._is_exact() else self.model
        self._meter.update(as_float32(network(self.normalization(images_NCHW))), targets)

    def on_validation_epoch_end(self) -> None:
        """Logs the figures of all validation batches, `val_loss` among them."""
        for name, value in self._meter.compute().items():
            self.log(f"val_{name}", value, prog_bar=name == self.objective.score, sync_dist=True)

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


@contextmanager
def _integers_wanted() -> Iterator[None]:
    """Says in an ExportError from inside how to train without integers."""
    try:
        yield
    except ExportError as error:
        raise ExportError(f"{error}; trainer.exact_share=0 trains without integers, export would need them") from error


def as_float32(outputs: Any) -> Any:
    """Outputs of a network, each tensor in float32."""
    return outputs.float() if isinstance(outputs, Tensor) else tuple(output.float() for output in outputs)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    normalization: Normalization,
    objective: Objective,
    device: torch.device | None = None,
) -> dict[str, float]:
    """Figures of a model in inference mode: at least `objective.score`, and "loss".

    Args:
        model: Float or quantized network.
        batches: Of (uint8 images, targets); only one is held at a time.
        normalization: Of the images.
        objective: What is measured.
        device: Where; None for where the model is.  The model is brought back afterwards, whatever happens.
    """
    training, home = model.training, next(model.parameters()).device
    device = device or home
    model.eval().to(device)
    meter = objective.meter()
    try:
        for images_NCHW, targets in batches:
            meter.update(as_float32(model(normalization(images_NCHW.to(device)))), targets.to(device))
    finally:
        model.train(training).to(home)
    return meter.compute()
