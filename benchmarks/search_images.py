"""Searches on real images for the benchmarks: an experiment, its trials, and what a winner is worth."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from hwmodel import CostTables
from hwmodel.precision import NetworkConfig
from qat.compose import compose_config
from qat.config import Config
from qat.pipeline.evaluation import evaluator_of
from qat.pipeline.planning import plan
from qat.pipeline.searching import _sensitivity, fidelity_of
from qat.pipeline.setup import Setup, train
from qat.runs import RunFolder
from qat.search.space import SearchSpace
from qat.search.trial import Fidelity, Screening, Target
from qat.tasks import TrainingTask, evaluate, fit
from qat.tasks.quantize import TrialEvaluator, _Look, quantize

EXPERIMENTS = {
    "digits": (
        "experiment=digits_demo",
        "search.min_compression=[22.66,32]",
        "quant.act_bit_width=2",
        "search.sparse_densities=[0.1,0.25,0.5]",
        "trainer.accelerator=cpu",
    ),
    "cifar10": ("experiment=cifar10_resnet20", "search.min_compression=[28.7]", "search.initial_trials=4"),
}


def looked(share: float) -> str:
    """Metric of a trial that is not screened: its accuracy after this share of its training."""
    return f"accuracy_after_{share:g}"


@dataclass(frozen=True)
class Curve:
    """An evaluator that measures accuracy several times on the way, where the search does not screen.

    Args:
        evaluator: Trains and measures.
        shares: Of the training after which accuracy is measured.
    """

    evaluator: TrialEvaluator
    shares: tuple[float, ...]

    def __call__(
        self, config: NetworkConfig, fidelity: Fidelity, seed: int, screening: Screening | None = None
    ) -> Mapping[str, float]:
        """The evaluator's metrics, and `looked` ones."""
        own = self.evaluator
        if screening:
            return own(config, fidelity, seed, screening)
        pl.seed_everything(seed, verbose=False)
        steps = round(fidelity.effort * len(own.data.train_dataloader()))
        model = quantize(own.float_model, config, own.data, own.normalization, device=own.machine.device)
        measure = partial(own._figures, model)
        looks = [_Look(measure, own.objective.score, Screening(share), steps) for share in self.shares]
        for look in looks:
            look.at_step(0)
        task = TrainingTask(model, own.normalization, own.recipe, own.objective, copy.deepcopy(own.float_model))
        fit(task, own.data, replace(own.machine, progress_bar=False, compiled=False), steps=steps, callbacks=looks)
        figures = measure()
        curve = {
            looked(share): look.metrics["screening_accuracy"] for share, look in zip(self.shares, looks, strict=True)
        }
        return {"accuracy": figures[own.objective.score], **figures, **curve}


@dataclass(frozen=True)
class Images:
    """An experiment with its float network."""

    config: Config
    setup: Setup
    space: SearchSpace
    costs: CostTables
    targets: list[Target]

    @classmethod
    def of(cls, problem: str, folder: Path, data_root: Path | None) -> Images:
        """Opens it; the first call trains, or reads, the float network.

        Args:
            problem: Of `EXPERIMENTS`.
            folder: Receives the float network.
            data_root: Where images and published weights are; `None` where they ship with a package.
        """
        torch.set_num_threads(1)
        run_dir = folder / f"{problem}_float"
        given = [f"data.root={data_root}"] if data_root else []
        plain = ["trainer.progress_bar=false", "trainer.num_threads=1", f"run_dir={run_dir}"]
        config = compose_config([*EXPERIMENTS[problem], *plain, *given])
        run = RunFolder(run_dir) if (run_dir / "config.yaml").is_file() else RunFolder.create(config)
        return cls(config, train(config, run), *plan(config))

    def arguments(self, shares: tuple[float, ...]) -> dict[str, Any]:
        """What `run_search` takes."""
        return {
            "evaluator": Curve(evaluator_of(self.config, self.setup), shares),
            "space": self.space,
            "cost": self.costs.evaluate,
            "targets": self.targets,
            "fidelity": fidelity_of(self.config, self.setup),
            "profile": lambda: _sensitivity(self.config, self.setup, self.space),
        }

    def unseen(self, network: NetworkConfig, seed: int) -> float:
        """Accuracy of a network, trained anew as long as a trial, on images that no trial has seen.

        These are the test images, or where trials are scored on a part of the validation images the rest of these.
        """
        setup, chosen = self.setup, self.config.search
        pl.seed_everything(seed, verbose=False)
        model = quantize(setup.float_model, network, setup.data, setup.normalization)
        task = TrainingTask(model, setup.normalization, setup.recipe, setup.objective, copy.deepcopy(setup.float_model))
        fit(task, setup.data, replace(setup.machine, progress_bar=False), steps=chosen.train_steps)
        batches = iter(setup.data.test_dataloader())
        if chosen.eval_images:
            seen = -(-chosen.eval_images // self.config.data.batch_size)
            batches = islice(setup.data.val_dataloader(), seen, None)
        return evaluate(model, batches, setup.normalization, setup.objective)["accuracy"]
