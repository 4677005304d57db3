"""torchvision's detectors on a GPU: trained float and quantized, probed and measured, with all float parts there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from hwmodel import uniform
from hwmodel.precision import LayerConfig
from qat import models
from qat.graph import trace
from qat.normalization import Normalization
from qat.tasks import Recipe, TrainingTask, evaluate, fit, objective_of
from qat.tasks.fit import Machine
from qat.tasks.quantize import SensitivityProbe, quantize
from tests.qat.tasks.test_float_part import TARGETS

GPU = Machine(accelerator="gpu", precision="bf16-mixed", progress_bar=False)
NORMALIZATION = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class _Batches:
    def __init__(self, batch: tuple[Tensor, Tensor]) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([self.batch])

    def __len__(self) -> int:
        return 1


class Noise(pl.LightningDataModule):
    """Two images of noise with the boxes of `TARGETS`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (2, 3, size, size), generator=generator, dtype=torch.uint8)
        self.batches = _Batches((images, TARGETS))

    def train_dataloader(self) -> _Batches:
        return self.batches

    def val_dataloader(self) -> _Batches:
        return self.batches


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "size"),
    [("ssdlite320", 320), ("ssd300", 300), ("retinanet_r50", 128), ("fcos_r50", 128), ("faster_rcnn_r50", 128)],
)
def test_float_and_quantized_steps_on_a_gpu(name: str, size: int) -> None:
    torch.manual_seed(0)
    model, data = getattr(models, name)(3), Noise(size)
    objective, network = objective_of(model), trace(model, (3, size, size))
    recipe = Recipe(learning_rate=1e-4, gradient_clip=1.0)
    fit(TrainingTask(model, NORMALIZATION, recipe, objective), data, GPU, steps=1)
    model.requires_grad_(False)
    config = uniform(network, 4, 8, end_bit_width=8)
    quantized = quantize(model, config, data, NORMALIZATION, device=GPU.device)
    assert next(quantized.parameters()).is_cuda
    fit(TrainingTask(quantized, NORMALIZATION, recipe, objective, model), data, GPU, steps=1)
    for one in (model, quantized):
        figures = evaluate(one, data.batches, NORMALIZATION, objective, GPU.device)
        assert 0 <= figures["ap"] <= figures["ap50"] <= 1 and figures["loss"] > 0
    probe = SensitivityProbe(model, config, data, NORMALIZATION, 2, objective, GPU.device)
    name_of_second = config.layers[1][0]
    layers = tuple((name, LayerConfig(2, 4) if name == name_of_second else layer) for name, layer in config.layers)
    assert probe(replace(config, layers=layers)) > 0
    # Behind it all a network on the CPU answers there, with the same float part.
    assert evaluate(quantized.cpu(), data.batches, NORMALIZATION, objective)["loss"] > 0
