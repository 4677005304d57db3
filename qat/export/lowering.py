"""Quantized torch model -> packed files."""

from __future__ import annotations

from pathlib import Path

from hwmodel.dataflow import Schedule
from qat.convert import QuantNetwork
from qat.deploy import lower
from qat.export.packed import PackedModel, save_packed
from qat.normalization import Normalization


def export(
    model: QuantNetwork,
    folder: Path,
    schedule: Schedule | None = None,
    normalization: Normalization | None = None,
    class_names: tuple[str, ...] = (),
) -> PackedModel:
    """Lowers a trained model to integers and writes its packed folder, whole or not at all.

    Args:
        model: Calibrated or trained quantized network.
        folder: Where the packed files go.
        schedule: Folding of each layer, which decides how wide memory words are; None packs unfolded streams.
        normalization: What turns 8-bit images into the model's input; by default division by 255.
        class_names: Names of the classes, for the manifest.

    Returns:
        The packed model, as `load_packed` would read it.

    Raises:
        ExportError: The model cannot be lowered to integers; the message names the layer.
    """
    normalization = normalization or Normalization.unit(model.network.input_channels)
    return save_packed(lower(model, normalization, class_names), folder, schedule)
