"""What every stage starts from: the float model, its graph, images, board, recipe."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn

from hwmodel import Board, NetworkSpec
from qat.config import Config
from qat.data import ImageDataModule, build_data
from qat.errors import ConfigError
from qat.graph import trace
from qat.inputs import FLOAT, check_devices, check_inputs, check_shape
from qat.masks import MaskSchedule, Saliency
from qat.models import build_network
from qat.normalization import Normalization
from qat.runs import RunFolder
from qat.tasks import Objective, Recipe, TrainingTask, evaluate, fit, objective_of
from qat.tasks.fit import Machine, is_first_process, read_checkpoint, wait_for_processes
from qat.tasks.quantize import keep_weights, load_state

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setup:
    """What every stage starts from.

    Args:
        float_model: Trained float model, in inference mode.
        network: Its graph with shapes.
        data: Fit, validation and test images.
        normalization: Of the images.
        objective: What networks are trained for and measured by.
        board: The board that costs are estimated for.
        recipe: Of the training in full.
        machine: Devices and precision.
    """

    float_model: nn.Module
    network: NetworkSpec
    data: ImageDataModule
    normalization: Normalization
    objective: Objective
    board: Board
    recipe: Recipe
    machine: Machine


def train(cfg: Config, run: RunFolder) -> Setup:
    """Trains the float model, or loads the weights that the configuration names; both only once.

    Returns:
        What the later stages start from; scores on test images are in `float.json`.

    Raises:
        ConfigError: The network has another number of classes or another shape than the images, or there is no GPU.
        CheckpointError: Weights are missing, damaged, of other shapes, or could not be written.
        DataError: Images are missing or damaged.
        TraceError: The network cannot be mapped to hardware.
        TrainingError: The loss is not finite, or training was interrupted.
    """
    check_inputs(cfg)
    if cfg.trainer.num_threads:
        torch.set_num_threads(cfg.trainer.num_threads)
    machine = machine_of(cfg)
    data = build_data(cfg.data, cfg.seed)
    if cfg.network.num_classes != len(data.class_names):
        first = ", ".join(data.class_names[:5])
        raise ConfigError(
            f"network.num_classes={cfg.network.num_classes}, expected {len(data.class_names)}: "
            f"data {cfg.data.name} has the classes {first}{', ...' if len(data.class_names) > 5 else ''}"
        )
    check_shape(cfg, data.input_shape)
    model = build_network(cfg.network, cfg.seed)
    network = trace(model, data.input_shape)
    normalization, recipe = data.normalization, recipe_of(cfg)
    objective = objective_of(model)
    kept = run.path / FLOAT
    is_measured = (run.path / "float.json").is_file()  # here, where no other process of a fit can have written it
    if kept.is_file():
        load_state(model, read_checkpoint(kept), kept)
    else:
        if cfg.network.weights:
            path = Path(cfg.network.weights)
            load_state(model, read_checkpoint(path), path)
        else:
            logger.info("training the float model")
            pl.seed_everything(cfg.seed, verbose=False)  # dropout draws from torch's own generator
            float_recipe = replace(
                recipe, epochs=cfg.trainer.float_epochs, learning_rate=cfg.trainer.float_learning_rate
            )
            fit(TrainingTask(model, normalization, float_recipe, objective), data, machine, run.path / "float")
        keep_weights(model, kept, run.path / "float" / "last.ckpt")
    model.eval().requires_grad_(False)  # quantized copies are trained; what stays in float behind them is not
    if not is_measured:
        figures = evaluate(model, data.test_dataloader(), normalization, objective, machine.device)
        if is_first_process():
            run.write_json("network.json", network.to_dict())
            run.write_json("float.json", {**figures, "images": data.test_images})  # last: it says that all is there
        wait_for_processes()
    return Setup(model, network, data, normalization, objective, cfg.board.to_board(), recipe, machine)


def recipe_of(cfg: Config) -> Recipe:
    """The recipe of training in full."""
    trainer = cfg.trainer
    return Recipe(
        epochs=trainer.epochs,
        learning_rate=trainer.learning_rate,
        weight_decay=trainer.weight_decay,
        warmup_share=trainer.warmup_share,
        distillation_weight=trainer.distillation_weight,
        temperature=trainer.temperature,
        gradient_clip=trainer.gradient_clip,
        mask_update_share=trainer.mask_update_share,
        mask_update_steps=trainer.mask_update_steps,
        mask_saliency=Saliency(trainer.mask_saliency),
        mask_schedule=MaskSchedule(trainer.mask_schedule),
    )


def machine_of(cfg: Config) -> Machine:
    """Devices and precision.

    Raises:
        ConfigError: A GPU is asked for that is not there.
    """
    trainer = cfg.trainer
    check_devices(trainer)
    return Machine(
        accelerator=trainer.accelerator,
        devices=trainer.devices,
        strategy=trainer.strategy,
        precision=trainer.precision,
        progress_bar=trainer.progress_bar,
        compiled=trainer.compile,
        integer_forward=trainer.integer_forward,
        epochs_per_validation=trainer.epochs_per_validation,
    )
