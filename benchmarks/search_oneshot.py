"""One-shot accuracy of ResNet-20 on CIFAR-10, from a file of inputs: what a process of `search_table.py` evaluates."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytorch_lightning as pl
import torch
from search_problems import FIDELITY
from search_rows import RULE
from torch import Tensor

import hwmodel
from hwmodel.networks import load_network
from hwmodel.precision import LayerConfig, NetworkConfig
from qat.compose import compose_config
from qat.models import build_network
from qat.normalization import Normalization
from qat.pipeline.setup import train
from qat.quantizers import WeightQuantizer
from qat.runs import RunFolder
from qat.search.trial import Fidelity
from qat.tasks.fit import read_checkpoint, write_checkpoint
from qat.tasks.quantize import CALIBRATION_BATCHES, quantize

IMAGES = 500
"""Held-out images that score a configuration."""

PROBE = Fidelity("probe", 0)
ROW = FIDELITY
"""What is scored: the sensitivity profile on calibration images, or a row on held-out ones."""

EXPERIMENT = ["experiment=cifar10_resnet20", "trainer.progress_bar=false", "trainer.num_threads=1"]


def keep_inputs(data_root: Path, folder: Path, path: Path) -> None:
    """Writes float weights, calibration images and held-out images into one file."""
    cfg = compose_config([*EXPERIMENT, f"data.root={data_root}", f"run_dir={folder / 'float'}"])
    setup = train(cfg, RunFolder.create(cfg))
    pl.seed_everything(0, verbose=False)
    kept = {
        "float": setup.float_model.state_dict(),
        "fit": list(islice(iter(setup.data.train_dataloader()), CALIBRATION_BATCHES)),
        "held_out": [torch.cat(part)[:IMAGES].clone() for part in zip(*setup.data.val_dataloader(), strict=True)],
        "normalization": [setup.normalization.mean, setup.normalization.std],
    }
    write_checkpoint(kept, path)


class _Kept(pl.LightningDataModule):
    """Batches that calibrate."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)


class OneShot:
    """Scores configurations without training; weights are quantized once per layer and choice.

    Quantized and calibrated once, at 8 bits everywhere; batch norm uses the statistics of the scored images under the
    changed weights.

    Args:
        path: File of `keep_inputs`.
    """

    def __init__(self, path: Path) -> None:
        torch.set_num_threads(1)
        kept = read_checkpoint(path)
        normalization = Normalization(*kept["normalization"])
        model = build_network(compose_config(EXPERIMENT).network, 0)
        model.load_state_dict(kept["float"])
        base = hwmodel.uniform(load_network("resnet20"), 8, RULE.act_bit_widths[0])
        self.model = quantize(model.eval(), base, _Kept(kept["fit"]), normalization).train()
        parts = {PROBE: kept["fit"][0], ROW: kept["held_out"]}
        self.images = {fidelity: (normalization(x_NCHW), labels) for fidelity, (x_NCHW, labels) in parts.items()}
        self._quantizers: dict[tuple[str, LayerConfig], WeightQuantizer] = {}

    @torch.no_grad()
    def __call__(self, config: NetworkConfig, fidelity: Fidelity, seed: int) -> dict[str, float]:
        """Accuracy in [0, 1] and cross-entropy; the seed changes nothing."""
        layers = self.model.weighted_layers
        for name, choice in config.layers:
            if (name, choice) not in self._quantizers:
                self._quantizers[name, choice] = WeightQuantizer(layers[name].weight_OIHW, choice)
            layers[name].weight_quantizer = self._quantizers[name, choice]
        x_NCHW, labels = self.images[fidelity]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = self.model(x_NCHW).float()
        loss = torch.nn.functional.cross_entropy(logits, labels)
        return {"accuracy": float((logits.argmax(1) == labels).double().mean()), "loss": float(loss)}
