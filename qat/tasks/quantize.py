"""From a float model and a configuration to a trained quantized network, and to a trial's score."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from hwmodel.precision import LayerConfig, NetworkConfig
from qat.convert import QuantNetwork, prepare
from qat.errors import CheckpointError
from qat.layers import QuantWeighted, WeightedCall
from qat.normalization import Normalization
from qat.quantizers import ActQuantizer, WeightQuantizer
from qat.rounding import Rounding, quantize_after_training
from qat.tasks.classification import Classification
from qat.tasks.fit import Machine, fit, is_first_process, read_checkpoint, wait_for_processes, write_checkpoint
from qat.tasks.training import Objective, Recipe, TrainingTask, as_float32, evaluate

CALIBRATION_BATCHES = 8
CLASSIFICATION = Classification()


class Fidelity(Protocol):
    """How much a trial may spend."""

    @property
    def effort(self) -> float:
        """Passes over the fit images, >= 0; 0 is one-shot quantization."""


class Screening(Protocol):
    """When a trial is looked at on the way, and what it must reach."""

    @property
    def share(self) -> float:
        """Of the training, in [0, 1)."""

    @property
    def least(self) -> float:
        """Score below which the trial ends there."""


def quantize(
    float_model: nn.Module,
    config: NetworkConfig,
    data: pl.LightningDataModule,
    normalization: Normalization,
    rounding: Rounding = Rounding.NEAREST,
    device: torch.device | None = None,
) -> QuantNetwork:
    """A calibrated, untrained quantized copy of a float model: one-shot quantization.

    Args:
        float_model: Trained float model; stays as it is.
        config: Precision of every layer.
        data: Its augmented fit batches calibrate steps and batch-norm statistics.
        normalization: Of the images.
        rounding: How weights become codes; `layerwise` is for networks that are not trained afterwards.
        device: Where it is calibrated, and stays; None for where the float model is.
    """
    model = prepare(float_model, config).to(device)
    batches = islice(iter(data.train_dataloader()), CALIBRATION_BATCHES)
    calibrate = model.calibrate if rounding is Rounding.NEAREST else partial(quantize_after_training, model)
    calibrate(normalization(images.to(device)) for images, _ in batches)
    return model


@dataclass(frozen=True)
class TrialEvaluator:
    """Scores a configuration: quantize, train for some steps, measure on validation images.

    Args:
        float_model: Trained float model, the start and the teacher of every trial.
        data: Fit and validation images.
        normalization: Of the images.
        recipe: Of the short training; its schedule is stretched over the trial's steps.
        machine: Devices and precision.
        eval_images: Validation images that score a trial; 0 for all.
        objective: What is trained for and measured.
        one_shot_rounding: How the weights of trials that train no step become codes.
    """

    float_model: nn.Module
    data: pl.LightningDataModule
    normalization: Normalization
    recipe: Recipe
    machine: Machine
    eval_images: int = 0
    objective: Objective = CLASSIFICATION
    one_shot_rounding: Rounding = Rounding.NEAREST

    def __call__(
        self, config: NetworkConfig, fidelity: Fidelity, seed: int, screening: Screening | None = None
    ) -> Mapping[str, float]:
        """Metrics of a trial on validation images: "accuracy" in [0, 1], which is the objective's score, and "loss".

        Args:
            config: Precision of every layer.
            fidelity: Training to spend.
            seed: Of everything random in the trial.
            screening: Adds "screening_accuracy", the score on the way; the only metric of a trial that ends there.
                What is trained and measured otherwise is the same with and without it.
        """
        pl.seed_everything(seed, verbose=False)
        steps = round(fidelity.effort * len(self.data.train_dataloader()))
        rounding = Rounding.NEAREST if steps > 0 else self.one_shot_rounding
        model = quantize(self.float_model, config, self.data, self.normalization, rounding, self.machine.device)
        look = _Look(partial(self._figures, model), self.objective.score, screening, steps) if screening else None
        if steps > 0 and not (look and look.at_step(0)):
            teacher = copy.deepcopy(self.float_model)
            task = TrainingTask(model, self.normalization, self.recipe, self.objective, teacher)
            machine = replace(self.machine, progress_bar=False, compiled=False)
            fit(task, self.data, machine, steps=steps, callbacks=(look,) if look else ())
        if look and look.stops:
            return look.metrics
        figures = self._figures(model)
        return {"accuracy": figures[self.objective.score], **figures, **(look.metrics if look else {})}

    def _figures(self, model: nn.Module) -> dict[str, float]:
        images = self._images(self.eval_images)
        return evaluate(model, images, self.normalization, self.objective, self.machine.device)

    def _images(self, limit: int) -> Iterator[tuple[Tensor, Tensor]]:
        seen = 0
        for images, labels in self.data.val_dataloader():
            if limit:
                images, labels = images[: limit - seen], labels[: limit - seen]
            seen += len(labels)
            yield images, labels
            if limit and seen >= limit:
                return


class _Look(Callback):
    """Measures a trial once on the way, and ends its training if it is not good enough.

    Args:
        measure: Figures of the model as it is.
        score: The one that counts.
        screening: When to look, and what must be reached.
        steps: Of the whole training; a screening needs at least one after it.
    """

    def __init__(
        self, measure: Callable[[], Mapping[str, float]], score: str, screening: Screening, steps: int
    ) -> None:
        self._measure, self._score, self._least = measure, score, screening.least
        self._step = min(round(screening.share * steps), max(0, steps - 1))
        self.metrics: dict[str, float] = {}
        self.stops = False

    def at_step(self, step: int) -> bool:
        """Looks if it is time, once; whether the trial ends here."""
        if step == self._step and not self.metrics:
            with torch.random.fork_rng():  # training goes on as if nobody had looked
                score = self._measure()[self._score]
            self.metrics = {"screening_accuracy": score}
            self.stops = score < self._least
        return self.stops

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        """Looks after an optimizer step."""
        trainer.should_stop = self.at_step(trainer.global_step) or trainer.should_stop


class SensitivityProbe:
    """Loss of configurations that differ from a base in some layers' weights or codes read, one forward pass each.

    The base is quantized and calibrated once.  Batch norm uses the statistics of the probe's batch: a layer whose
    weights change is judged with the statistics that training would give it, at no cost.  A layer that reads fewer
    bits rounds what is written for it in the base.

    Args:
        float_model: Trained float model.
        base: Configuration of the layers that are not probed, for example 8 weight bits everywhere.
        data: Its augmented fit batches calibrate and probe.
        normalization: Of the images.
        images: Images of the probe; more than 1, rounded up to whole batches.
        objective: Whose loss is probed.
        device: Where; None for where the float model is.
    """

    def __init__(
        self,
        float_model: nn.Module,
        base: NetworkConfig,
        data: pl.LightningDataModule,
        normalization: Normalization,
        images: int,
        objective: Objective = CLASSIFICATION,
        device: torch.device | None = None,
    ) -> None:
        self.base = base
        self.objective = objective
        self.model = quantize(float_model, base, data, normalization, device=device).train()
        self._inputs = {node.name: node.inputs[0] for node in self.model.graph.nodes}
        batches, count = [], 0
        for batch in data.train_dataloader():
            batches.append(batch)
            count += len(batch[1])
            if count >= images:
                break
        self.x_NCHW = normalization(torch.cat([batch[0] for batch in batches]).to(device))
        self.targets = torch.cat([batch[1] for batch in batches]).to(device)

    @torch.no_grad()
    def __call__(self, config: NetworkConfig) -> float:
        """Loss on the probe's images.

        Raises:
            ValueError: A layer reads more bits than in the base.
        """
        changed = {name: layer for name, layer in config.layers if layer != self.base[name]}
        layers = {name: self.model.layer(name) for name in changed}
        wider = [name for name, layer in changed.items() if layer.act_bit_width > self.base[name].act_bit_width]
        if wider:
            raise ValueError(f"layers {wider} read more bits than in the base, which has to be the widest")
        weights = {one: one.weight_quantizer for one in layers.values() if isinstance(one, QuantWeighted)}
        codes = {one: one.input_quantizer for one in layers.values() if isinstance(one, WeightedCall)}
        try:
            for name, layer in changed.items():
                self._change(layers[name], layer, self.base[name], name)
            return float(self.objective.loss(as_float32(self.model(self.x_NCHW)), self.targets))
        finally:
            for owner, quantizer in weights.items():
                owner.weight_quantizer = quantizer
            for call, reader in codes.items():
                call.input_quantizer = reader

    def _change(self, layer: nn.Module, config: LayerConfig, base: LayerConfig, name: str) -> None:
        """Gives a layer other weights, and reads fewer bits, whose step is fitted to the probe's images."""
        assert isinstance(layer, WeightedCall)
        if isinstance(layer, QuantWeighted):
            layer.weight_quantizer = WeightQuantizer(layer.weight_OIHW, config).to(layer.weight.device)
        if config.act_bit_width < base.act_bit_width:
            source = self.model.written_by(self._inputs[name])
            reader = ActQuantizer(config.act_bit_width, source.signed, source.scale_rule)
            reader.calibrating = True
            layer.input_quantizer = reader.to(source.log2_scale.device)


def finetune(
    float_model: nn.Module,
    config: NetworkConfig,
    data: pl.LightningDataModule,
    normalization: Normalization,
    recipe: Recipe,
    machine: Machine,
    folder: Path,
    seed: int,
    objective: Objective = CLASSIFICATION,
    exact_share: float = 0.0,
) -> QuantNetwork:
    """Trains a configuration in full; a fit that was finished before is loaded, one that was interrupted goes on.

    Args:
        float_model: Trained float model, start and teacher.
        config: Precision of every layer.
        data: Fit and validation images.
        normalization: Of the images.
        recipe: How to train.
        machine: Devices and precision.
        folder: Receives `model.ckpt` (the result), `last.ckpt`, `metrics.csv`.
        seed: Of everything random.
        objective: What is trained for.
        exact_share: Last share of the steps that compute with the integers, as in `TrainingTask`.

    Returns:
        The trained network in inference mode.
    """
    result = folder / "model.ckpt"
    if result.is_file():
        return load_quantized(float_model, config, result)
    pl.seed_everything(seed, verbose=False)
    model = quantize(float_model, config, data, normalization, device=machine.device)
    task = TrainingTask(model, normalization, recipe, objective, copy.deepcopy(float_model), exact_share)
    fit(task, data, machine, folder)
    keep_weights(model, result, folder / "last.ckpt")
    return model.eval()


def keep_weights(model: nn.Module, path: Path, last: Path) -> None:
    """Writes what a fit came to.  Of several processes the first writes, and all go on with its statistics.

    Args:
        model: What was fitted.
        path: Receives its weights.
        last: What an interrupted fit would have gone on from: three times the size, and no longer needed.

    Raises:
        CheckpointError: The file could not be written.
    """
    if is_first_process():
        write_checkpoint({"state_dict": model.state_dict()}, path)
        last.unlink(missing_ok=True)
    wait_for_processes()
    if not is_first_process():
        load_state(model, read_checkpoint(path), path)  # running statistics are each process's own


def load_quantized(float_model: nn.Module, config: NetworkConfig, path: Path) -> QuantNetwork:
    """The trained network of a `model.ckpt` that `finetune` wrote, in inference mode.

    Raises:
        CheckpointError: The file is missing, damaged, or of another configuration.
    """
    model = prepare(float_model, config)
    load_state(model, read_checkpoint(path), path)
    return model.eval()


def load_state(model: nn.Module, checkpoint: Mapping[str, object], path: Path) -> None:
    """Loads weights strictly.

    Accepts a plain state dict or one under the key "state_dict", with names that all begin with "module." or not.

    Raises:
        CheckpointError: Names or shapes differ, or a value is no tensor; the message lists them.
    """
    state = checkpoint.get("state_dict", checkpoint)
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"weights file {path} holds no state dict")
    if all(str(name).startswith("module.") for name in state):
        state = {str(name).removeprefix("module."): value for name, value in state.items()}
    own = model.state_dict()
    plain = [
        str(name)
        for name, value in state.items()
        if isinstance(own.get(name), Tensor) and not isinstance(value, Tensor)
    ]
    if plain:
        raise CheckpointError(f"weights file {path} holds no tensor under {_first(plain)}")
    shapes = {
        name: f"{name} is {tuple(value.shape)}, expected {tuple(own[name].shape)}"
        for name, value in state.items()
        if name in own and isinstance(value, Tensor) and value.shape != own[name].shape
    }
    # torch knows which entries an older file may lack.
    fitting = {name: value for name, value in state.items() if name not in shapes}
    missing, unknown = model.load_state_dict(fitting, strict=False)
    missing = [name for name in missing if name not in shapes]
    faults = (("missing", missing), ("unknown", unknown), ("of another shape", list(shapes.values())))
    if any(names for _, names in faults):
        reasons = "; ".join(f"{len(names)} {kind} ({_first(names)})" for kind, names in faults if names)
        raise CheckpointError(f"weights file {path} does not fit the network: {reasons}")


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
