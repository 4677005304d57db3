"""How trials are scored, and where: in this process, in others, on a cluster."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from qat.config import Config
from qat.pipeline.setup import Setup, train
from qat.rounding import Rounding
from qat.runs import RunFolder
from qat.search.cluster import RayCluster
from qat.search.executor import Executor, InProcess
from qat.search.pool import ProcessPool
from qat.tasks.quantize import TrialEvaluator


@dataclass(frozen=True)
class EvaluatorFactory:
    """Makes the evaluator of a run in another process, from the run folder, which that process must see.

    Args:
        config: The run's configuration.
        folder: The run folder; holds the trained float model.
    """

    config: Config
    folder: Path

    def __call__(self) -> TrialEvaluator:
        """The evaluator."""
        return evaluator_of(self.config, train(self.config, RunFolder(self.folder)))


def evaluator_of(cfg: Config, setup: Setup) -> TrialEvaluator:
    """What scores a trial."""
    return TrialEvaluator(
        setup.float_model,
        setup.data,
        setup.normalization,
        setup.recipe,
        setup.machine,
        cfg.search.eval_images or 0,
        setup.objective,
        Rounding(cfg.quant.one_shot_rounding),
    )


def executor_of(cfg: Config, run: RunFolder, setup: Setup) -> Executor:
    """Where trials run, as `search.executor` says.

    Raises:
        SearchError: Ray is not installed, or there is no cluster at the address.
    """
    chosen = cfg.search.executor
    if chosen.kind == "in_process":
        return InProcess(evaluator_of(cfg, setup), chosen.time_limit_s)
    # Threads of a worker are its executor's to give: `trainer.num_threads` is meant for a process that works alone.
    factory = EvaluatorFactory(replace(cfg, trainer=replace(cfg.trainer, num_threads=None)), run.path)
    if chosen.kind == "processes":
        return ProcessPool(factory, chosen.workers, chosen.threads, chosen.time_limit_s)
    return RayCluster(
        factory,
        chosen.workers,
        address=chosen.address,
        cpus=chosen.cpus,
        gpus=chosen.gpus,
        time_limit_s=chosen.time_limit_s,
    )
