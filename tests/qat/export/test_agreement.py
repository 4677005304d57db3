"""The packed files against the deployed torch model: two programs, the same codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hwmodel import Granularity, LayerConfig, NetworkConfig, WeightFormat
from qat.convert import prepare
from qat.deployment import deploy
from qat.export import load_packed, save_packed
from qat.export.lowering import export_program
from qat.graph import trace
from tests.qat.nets import NORMALIZATION, EveryOp, Residual, images, settle

FORMATS = [
    LayerConfig(1, 4),
    LayerConfig(2, 3),
    LayerConfig(8, 8),
    LayerConfig(3, 5, 0.6, WeightFormat.SPARSE, Granularity.KERNEL),
    LayerConfig(1, 4, 0.95, WeightFormat.BINARY_PLUS_SPARSE),
    LayerConfig(1, 4, 0.9, WeightFormat.BINARY_PLUS_SPARSE, Granularity.CHANNEL_VECTOR),
]


@pytest.mark.parametrize("model_type", [Residual, EveryOp])
@pytest.mark.parametrize("layer", FORMATS, ids=str)
def test_no_code_of_any_layer_differs(tmp_path: Path, model_type: type[nn.Module], layer: LayerConfig) -> None:
    torch.manual_seed(2)
    model = settle(model_type())
    network = trace(model, (3, 16, 16))
    quantized = prepare(model, NetworkConfig(tuple((spec.name, layer) for spec in network.weighted)))
    quantized.calibrate([NORMALIZATION(images(32))])
    deployed = deploy(quantized.eval(), NORMALIZATION)
    save_packed(deployed.integers, tmp_path / "model")
    batch = images(12, seed=4)
    loaded = load_packed(tmp_path / "model")
    codes = loaded.layer_codes(batch.numpy())
    for name, expected in deployed.layer_codes(batch).items():
        if name != "input":
            assert np.array_equal(codes[name], expected.numpy()), name
    assert np.array_equal(loaded.run(batch.numpy()), deployed(batch).numpy())


def test_the_exported_program_gives_the_same_codes() -> None:
    torch.manual_seed(2)
    model = settle(EveryOp())
    layer = LayerConfig(1, 4, 0.95, WeightFormat.BINARY_PLUS_SPARSE)
    network = trace(model, (3, 16, 16))
    quantized = prepare(model, NetworkConfig(tuple((spec.name, layer) for spec in network.weighted)))
    quantized.calibrate([NORMALIZATION(images(32))])
    deployed = deploy(quantized.eval(), NORMALIZATION)
    program = export_program(deployed, batch=4)
    batch = images(4, seed=4)
    assert torch.equal(program.module()(batch), deployed(batch))
