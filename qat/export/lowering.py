"""Quantized torch model -> packed files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from hwmodel.dataflow import Schedule
from qat.convert import QuantNetwork
from qat.deployment import DeployedNetwork, lower
from qat.errors import ExportError
from qat.export.packed import PackedModel, save_packed
from qat.normalization import Normalization


def export_program(model: DeployedNetwork, batch: int = 1) -> torch.export.ExportedProgram:
    """A `torch.export` program from uint8 images (batch, C, H, W) to output codes, integers as in the deployed network.

    Args:
        model: What `qat.deploy` returns.
        batch: Images per run.
    """
    network = model.integers.network
    shape = (batch, network.input_channels, network.input_height, network.input_width)
    return torch.export.export(model.eval(), (torch.zeros(shape, dtype=torch.uint8),))


def export(
    model: QuantNetwork | DeployedNetwork,
    folder: str | Path,
    schedule: Schedule | None = None,
    normalization: Normalization | None = None,
    class_names: tuple[str, ...] = (),
) -> PackedModel:
    """Lowers a trained model to integers and writes its packed folder, whole or not at all.

    Args:
        model: Calibrated or trained quantized network, or what `qat.deploy` made of one.
        folder: Where the packed files go.
        schedule: Folding of each layer, which decides how wide memory words are; None packs unfolded streams.
        normalization: What turns 8-bit images into the model's input; by default division by 255.  A deployed network
            has its own.
        class_names: Names of the classes, for the manifest.

    Returns:
        The packed model, as `load_packed` would read it.

    Raises:
        ExportError: The model cannot be lowered to integers; the message names the layer.  Or the model is none that
            can be exported, or a normalization was given for a deployed network.
    """
    if isinstance(model, DeployedNetwork):
        if normalization is not None:
            raise ExportError("normalization: a deployed network has its own; give it to qat.deploy instead")
        return save_packed(replace(model.integers, class_names=tuple(class_names)), folder, schedule)
    if not isinstance(model, QuantNetwork):
        raise ExportError(
            f"model is a {type(model).__name__}, expected what qat.prepare or qat.deploy returns; a float model goes "
            "through qat.prepare first"
        )
    normalization = normalization or Normalization.unit(model.network.input_channels)
    return save_packed(lower(model, normalization, class_names), folder, schedule)
