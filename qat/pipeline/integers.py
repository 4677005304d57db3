"""Packed integer networks: written, read back, compared code for code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hwmodel import NetworkConfig, Schedule
from qat.config import Config
from qat.convert import QuantNetwork
from qat.deployment import DeployedNetwork, deploy
from qat.errors import RunFolderError
from qat.export import export as export_packed
from qat.export import load_packed
from qat.files import write_rows
from qat.pipeline.records import NETWORKS, results
from qat.pipeline.setup import Setup, train
from qat.runs import RunFolder
from qat.tasks.quantize import load_quantized


def export(cfg: Config, run: RunFolder) -> list[Path]:
    """Writes the packed files of every network of a run; what is there already is not written again.

    Returns:
        The packed folders.

    Raises:
        QatError: The run has no trained network, or one cannot be lowered to integers.
    """
    found = results(run)  # before the float network of a folder that has none would be trained
    setup = train(cfg, run)
    folders = []
    for result in found:
        folder = run.path / NETWORKS / result.name
        if not (folder / "packed").is_dir():
            model = _load(setup, folder)
            schedule = Schedule.from_dict(json.loads((folder / "schedule.json").read_text()))
            export_packed(model, folder / "packed", schedule, setup.normalization, setup.data.class_names)
        folders.append(folder / "packed")
    return folders


def _load(setup: Setup, folder: Path) -> QuantNetwork:
    config = NetworkConfig.from_dict(json.loads((folder / "config.json").read_text()))
    return load_quantized(setup.float_model, config, folder / "model.ckpt")


def _values(
    codes: NDArray[np.int32] | tuple[NDArray[np.int32], ...], scales: tuple[float, ...]
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Output codes as a network in float would return them."""
    if isinstance(codes, tuple):
        return tuple(torch.from_numpy(one).float() * scale for one, scale in zip(codes, scales, strict=True))
    return torch.from_numpy(codes).float() * scales[0]


@torch.no_grad()
def verify(cfg: Config, run: RunFolder) -> int:
    """Compares the packed files with the deployed model, code for code, over all test images and all layers.

    Returns:
        Codes that differ, over all networks; 0 is the only acceptable answer.

    Raises:
        QatError: There is nothing to verify, or packed files are damaged.
    """
    found = results(run)
    for result in found:
        if not (run.path / NETWORKS / result.name / "packed").is_dir():
            raise RunFolderError(
                f"{run.path / NETWORKS / result.name} has no packed files; run scripts/export.py first"
            )
    setup = train(cfg, run)
    total = 0
    for result in found:
        folder = run.path / NETWORKS / result.name
        packed = load_packed(folder / "packed")
        deployed: DeployedNetwork = deploy(_load(setup, folder), setup.normalization)
        meter, differing, lost, won = setup.objective.meter(), 0, 0, 0
        paired = False
        for images, targets in setup.data.test_dataloader():
            ours = deployed.layer_codes(images)
            theirs = packed.layer_codes(images.numpy())
            differing += sum(int((ours[name].numpy() != theirs[name]).sum()) for name in ours)
            outputs = _values(packed.run(images.numpy()), packed.output_scales)
            meter.update(outputs, targets)
            hits = setup.objective.hits(outputs, targets)
            float_hits = setup.objective.hits(setup.float_model(setup.normalization(images)), targets)
            if hits is not None and float_hits is not None:
                paired = True
                lost += int((float_hits & ~hits).sum())
                won += int((hits & ~float_hits).sum())
        verified = replace(
            result,
            integer_score=meter.compute()[setup.objective.score],
            lost=lost if paired else None,
            won=won if paired else None,
            differing_codes=differing,
        )
        run.write_json(f"{NETWORKS}/{result.name}/result.json", verified.to_dict())
        total += differing
    write_rows(run.path / "summary", [result.to_dict() for result in results(run)])
    return total
