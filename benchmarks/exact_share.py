"""What training with the integers in the loop gains: the same trainings with and without it, measured as integers.

    python benchmarks/exact_share.py --seeds 10 --shares 0 0.1 0.3

The network, recipe and images of `experiment=digits_demo`, uniform precisions, each trained in full with every seed.
*Agree* is the share of test images on which the arithmetic of the last training steps and the integers answer the same;
*lost* and *won* are pairs against the same seed's training without integers, both measured as integers.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from search_quality import environment

from hwmodel.precision import NetworkConfig
from qat.compose import compose_config
from qat.deployment import deploy
from qat.exact import ExactNetwork
from qat.pipeline.setup import Setup, train
from qat.runs import RunFolder
from qat.tasks.quantize import finetune
from qat.uniform import uniform_of

PRECISIONS = ((1, 2), (1, 4), (2, 2), (4, 4))
"""Weight and activation bits."""


@torch.no_grad()
def answers(model: nn.Module, setup: Setup) -> np.ndarray:
    """Classes that a network finds in the test images."""
    return np.concatenate(
        [model(setup.normalization(images)).argmax(1).numpy() for images, _ in setup.data.test_dataloader()]
    )


@torch.no_grad()
def measure(setup: Setup, config: NetworkConfig, share: float, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Answers of a trained network in the arithmetic of its last steps, and of its integers; seconds of training."""
    with tempfile.TemporaryDirectory() as folder, torch.enable_grad():
        start = time.process_time()
        arguments = (setup.float_model, config, setup.data, setup.normalization, setup.recipe, setup.machine)
        model = finetune(*arguments, Path(folder), seed, setup.objective, share)
        seconds = time.process_time() - start
    deployed = deploy(model, setup.normalization)
    integers = np.concatenate([deployed(images).argmax(1).numpy() for images, _ in setup.data.test_dataloader()])
    return answers(ExactNetwork(model, setup.normalization) if share else model, setup), integers, seconds


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.1, 0.3], help="the first is compared with")
    parser.add_argument("--precisions", nargs="+", default=[f"w{w}a{a}" for w, a in PRECISIONS])
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    print(environment())
    with tempfile.TemporaryDirectory() as folder:
        plain = ["trainer.progress_bar=false", "trainer.num_threads=1", "trainer.accelerator=cpu"]
        config = compose_config(["experiment=digits_demo", *plain, f"run_dir={folder}/float"])
        run = RunFolder.create(config)
        setups = [train(replace(config, seed=seed), run) for seed in range(chosen.seeds)]  # one float network
    labels = np.concatenate([labels.numpy() for _, labels in setups[0].data.test_dataloader()])
    print("| precision | share | integer top-1 | lost / won | agree | training, s |\n" + 6 * "|---" + "|")
    for name in chosen.precisions:
        weight_bits, act_bits = (int(bits) for bits in name.removeprefix("w").split("a"))
        network = uniform_of(replace(config.quant, act_bit_width=act_bits), setups[0].network, weight_bits)
        found = {
            share: [measure(setup, network, share, seed) for seed, setup in enumerate(setups)]
            for share in chosen.shares
        }
        first = np.array([integers == labels for _, integers, _ in found[chosen.shares[0]]])
        for share, results in found.items():
            hits = np.array([integers == labels for _, integers, _ in results])
            scores = 100 * hits.mean(1)
            cells = (
                name.upper(),
                f"{share:g}",
                f"{scores.mean():.2f} +- {scores.std(ddof=1) / len(scores) ** 0.5:.2f} %",
                f"{int((first & ~hits).sum())} / {int((hits & ~first).sum())} of {hits.size}",
                f"{100 * np.mean([ours == integers for ours, integers, _ in results]):.2f} %",
                f"{np.mean([seconds for *_, seconds in results]):.1f}",
            )
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
